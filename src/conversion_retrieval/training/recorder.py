"""What a run reports: the training curve, TensorBoard events."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.tensorboard import SummaryWriter

CURVE_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("epoch", pa.int64()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)


class Recorder:
    """Appends to ``curve`` (rows of ``CURVE_SCHEMA``, part of a run's position) and to TensorBoard where asked."""

    def __init__(self, curve: list[dict[str, Any]], log_dir: Path | None, *, first_step: int = 0) -> None:
        self.curve = curve
        # Events of steps after the checkpoint belong to the run that was lost.
        self._writer = SummaryWriter(str(log_dir), purge_step=first_step) if log_dir else None

    def record(self, *, step: int, epoch: int, split: str, values: dict[str, float]) -> None:
        """Add one value a metric."""
        for metric, value in values.items():
            self.curve.append({"step": step, "epoch": epoch, "split": split, "metric": metric, "value": float(value)})
            if self._writer is not None:
                self._writer.add_scalar(f"{split}/{metric}", value, step)

    def close(self) -> None:
        """Flush TensorBoard's events."""
        if self._writer is not None:
            self._writer.close()


def write_curve(curve: list[dict[str, Any]], path: Path) -> None:
    """Write the curve as Parquet."""
    pq.write_table(pa.Table.from_pylist(curve, schema=CURVE_SCHEMA), path, compression="zstd")
