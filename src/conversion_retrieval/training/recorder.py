"""What a run reports: the training curve, TensorBoard events."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.tensorboard import SummaryWriter

from conversion_retrieval.errors import one_line
from conversion_retrieval.progress import say

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
    """Appends to ``curve`` (rows of ``CURVE_SCHEMA``, part of a run's position) and to TensorBoard where asked.

    Events that cannot be written, to a volume that is full, are said and left out from then on: the curve has the rest.
    """

    def __init__(self, curve: list[dict[str, Any]], log_dir: Path | None, *, first_step: int = 0) -> None:
        self.curve = curve
        # Events of steps after the checkpoint belong to the run that was lost.
        self._writer = SummaryWriter(str(log_dir), purge_step=first_step) if log_dir else None

    def record(self, *, step: int, epoch: int, split: str, values: dict[str, float]) -> None:
        """Add one value a metric."""
        for metric, value in values.items():
            self.curve.append({"step": step, "epoch": epoch, "split": split, "metric": metric, "value": float(value)})
        if self._writer is not None:
            try:
                for metric, value in values.items():
                    self._writer.add_scalar(f"{split}/{metric}", value, step)
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Flush TensorBoard's events."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        say(f"no more events for TensorBoard: {one_line(error)}")


def write_curve(curve: list[dict[str, Any]], path: Path) -> None:
    """Write the curve as Parquet."""
    pq.write_table(pa.Table.from_pylist(curve, schema=CURVE_SCHEMA), path, compression="zstd")
