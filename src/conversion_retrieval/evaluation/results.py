"""Reading ``metrics.json``: what was measured for which model on which slice."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conversion_retrieval.errors import CorruptArtifactError

METRICS_FILE: Final = "metrics.json"
LABELS: Final = {
    "candidate": "candidate (this run)",
    "champion": "champion",
    "popularity": "popularity",
    "recent_popularity": "recent popularity",
    "own_history": "own history",
    "item_knn": "item-kNN",
    "pure_svd": "PureSVD",
    "engagement_only": "engagement-only",
}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One row of ``metrics.json``; ``low`` and ``high`` bound ``value``, None where there is no interval."""

    name: str
    model: str
    slice: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n_queries: int = 0
    n_positives: int = 0


@dataclass(frozen=True)
class Results:
    """All measurements of one evaluation."""

    measurements: tuple[Measurement, ...]

    @classmethod
    def read(cls, evaluation_dir: Path) -> "Results":
        """Read an evaluation's metrics; ``CorruptArtifactError`` if the file is not what an evaluation writes."""
        path = evaluation_dir / METRICS_FILE
        try:
            return cls(tuple(Measurement(**row) for row in json.loads(path.read_text())))
        except (OSError, ValueError, TypeError) as error:
            raise CorruptArtifactError(f"expected a list of metrics at {path}, found: {error}") from None

    def find(self, name: str, *, model: str = "candidate", slice_: str = "all") -> Measurement | None:
        """The one measurement of that name, model and slice, or None."""
        matching = (m for m in self.measurements if (m.name, m.model, m.slice) == (name, model, slice_))
        return next(matching, None)

    def models(self) -> list[str]:
        """Models in report order: candidate, champion, then the baselines as measured."""
        found = dict.fromkeys(m.model for m in self.measurements)
        return sorted(found, key=lambda model: {"candidate": 0, "champion": 1}.get(model, 2))

    def ks(self, task: str = "conversion") -> list[int]:
        """The cut-offs at which the task's recall was measured, ascending."""
        prefix = f"{task}/recall@"
        return sorted({int(m.name.removeprefix(prefix)) for m in self.measurements if m.name.startswith(prefix)})

    def slices(self, name: str) -> Iterator[tuple[str, list[str]]]:
        """(slice family, its slice names in file order) for a metric, ``all`` left out."""
        families: dict[str, dict[str, None]] = {}
        for m in self.measurements:
            if m.name == name and "=" in m.slice:
                families.setdefault(m.slice.partition("=")[0], {})[m.slice] = None
        for family, names in families.items():
            yield family, list(names)


def label_of(model: str) -> str:
    """What a person calls the model."""
    return LABELS.get(model, model.replace("_", " "))
