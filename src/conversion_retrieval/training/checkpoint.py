"""Checkpoints: a new directory each, complete or invisible, from which a run goes on as if it had never stopped.

No random state is stored: everything random derives from the seed, the epoch and the step.
"""

import json
import re
import shutil
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conversion_retrieval.contracts import new_artifact, open_artifact, read_manifest, write_json
from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.progress import say
from conversion_retrieval.training.distributed import of_the_first
from conversion_retrieval.training.shard import Shard

KIND: Final = "checkpoint"
TENSORS_FILE: Final = "tensors.safetensors"
STATE_FILE: Final = "state.json"
FINGERPRINT: Final = ("model", "losses", "training", "features", "spec")
"""What a run's fingerprint holds a digest of, in this order, with dashes between them."""
_NAME: Final = re.compile(r"step-(\d+)-[0-9a-f]+")


@dataclass(kw_only=True)
class Position:
    """Where a run is: ``step`` steps done, the next is batch ``index`` of ``epoch``; and how validation went.

    ``optimizer`` is the one that was chosen at the start: a run keeps it when it goes on somewhere else.
    ``share_values`` is what was found with each of ``tower_shares``, once training is over.
    """

    step: int = 0
    epoch: int = 0
    index: int = 0
    queries: int = 0
    validated_step: int = -1
    best_value: float = -1.0
    best_step: int = -1
    stale_validations: int = 0
    share_values: list[float] = field(default_factory=list)
    optimizer: str = ""
    curve: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A position with all tensors: ``model/*``, ``objective/*``, ``optimizer/*`` and the best weights, ``best/*``.

    ``path`` is where it was read from.
    """

    position: Position
    tensors: dict[str, Tensor]
    path: Path | None = None

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors below ``name/``."""
        return {key.removeprefix(f"{name}/"): t for key, t in self.tensors.items() if key.startswith(f"{name}/")}


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one run in a directory; ``fingerprint`` identifies configuration, features and spec."""

    directory: Path
    fingerprint: str
    keep: int

    def below(self, name: str) -> "Checkpoints":
        """Those of a part of the run that has positions of its own."""
        return replace(self, directory=self.directory / name)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a new checkpoint, its manifest last, then remove the oldest beyond ``keep``.

        Others of its step go too, and those of later steps: a run that comes by here again passed them over as damaged.
        First goes what a process killed while it wrote left behind: one process writes here at a time.
        """
        for unfinished in self.directory.glob(".step-*.tmp"):
            shutil.rmtree(unfinished, ignore_errors=True)
        superseded = [old for step, old in self._numbered() if step >= checkpoint.position.step]
        path = self.directory / f"step-{checkpoint.position.step:09d}-{uuid.uuid4().hex[:8]}"
        with new_artifact(path, kind=KIND, inputs={"run": self.fingerprint}) as working_dir:
            contiguous = {key: t.detach().contiguous().cpu() for key, t in checkpoint.tensors.items()}
            save_file(contiguous, str(working_dir / TENSORS_FILE))
            write_json(working_dir / STATE_FILE, asdict(checkpoint.position))
        for old in superseded:
            shutil.rmtree(old, ignore_errors=True)
        for old in self.paths()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that reads well, None where there is none.

        A damaged one is passed over with a line that says so. Raises ``UserError`` for another run's checkpoints.
        """
        for path in self.paths():
            try:
                manifest = open_artifact(path, kind=KIND)
            except CorruptArtifactError as error:
                say(f"checkpoint passed over: {error}")
                continue
            self._check(path, manifest.inputs.get("run", ""))
            say(f"resuming from {path}")
            return read_checkpoint(path)
        return None

    def paths(self) -> list[Path]:
        """Complete checkpoints, newest first."""
        found = []
        for step, path in self._numbered():
            try:
                found.append((step, read_manifest(path, kind=KIND).created_time, path))
            except CorruptArtifactError:
                continue
        return [path for *_, path in sorted(found, reverse=True)]

    def _numbered(self) -> list[tuple[int, Path]]:
        """What is named as a checkpoint, with its step, complete or not."""
        names = ((_NAME.fullmatch(path.name), path) for path in self.directory.glob("step-*"))
        return [(int(name[1]), path) for name, path in names if name]

    def _check(self, path: Path, found: str) -> None:
        if found != self.fingerprint:
            digests = zip(FINGERPRINT, self.fingerprint.split("-"), found.split("-"), strict=False)
            changed = [name for name, own, other in digests if own != other]
            raise UserError(
                f"expected a checkpoint of this configuration and data, found one with other {' and '.join(changed)} "
                f"at {path}: give another checkpoint directory or remove it"
            )


def common_latest(checkpoints: Checkpoints | None, shard: Shard, device: torch.device) -> Checkpoint | None:
    """The newest checkpoint, the same one in all processes, which call this together.

    Raises ``UserError`` where this process found another than the first one, as on a node whose view of the volume
    lags: from different ones they would wait for each other in vain, or mix their weights.
    """
    found = checkpoints.latest() if checkpoints else None
    own = int(found.path.name.rpartition("-")[2], 16) if found and found.path else -1
    if own != of_the_first(own, shard, device):
        raise UserError(
            f"expected the checkpoint that the first process goes on from, found another, {found and found.path}, in "
            "this one: start again when all processes see the same files"
        )
    return found


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that was verified."""
    values = json.loads((path / STATE_FILE).read_text())
    return Checkpoint(position=Position(**values), tensors=load_file(str(path / TENSORS_FILE)), path=path)
