"""From the ranks of one model to the rows of ``metrics.json``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.evaluation.config import EvaluationConfig
from conversion_retrieval.evaluation.intervals import Intervals, UserBootstrap, sum_by_user
from conversion_retrieval.evaluation.metrics import MetricSums, hits_at, query_sums, recall_sums
from conversion_retrieval.evaluation.ranking import Ranks
from conversion_retrieval.evaluation.results import Measurement
from conversion_retrieval.evaluation.window import EvaluationWindow

ALL: Final = "all"
NEW_ITEMS: Final = "new_to_user=true"
NEW_ITEMS_FULL_LIST: Final = "new_to_user_in_full_list=true"
# Every task is sliced by these; conversions by all families.
SHORT_FAMILIES: Final = ("surface",)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Some positives and their ranks: ``mask`` [P] and ``ranks`` [P] (in a shortened list for items new to a user)."""

    name: str
    mask: NDArray[np.bool_]
    ranks: NDArray[np.int32]


class Measurer:
    """Measures models on one window; all share the bootstrap's draws, so their differences are paired."""

    def __init__(self, window: EvaluationWindow, config: EvaluationConfig) -> None:
        self.window, self.config = window, config
        self.queries = window.split.positives.query
        self.users = window.users[self.queries]
        self.bootstrap = UserBootstrap(
            num_users=window.num_users,
            num_resamples=config.num_resamples,
            confidence_level=config.confidence_level,
            seed=config.seed,
        )

    def model(self, model: str, ranks: Ranks) -> Iterator[Measurement]:
        """Every metric of a model on every group and slice of positives."""
        for group, mask in self.window.groups.items():
            sums = query_sums(
                ranks.full[mask], self.queries[mask], self.users[mask], self.config.ks, self.window.num_users
            )
            yield from self._rows(group, model, [Slice(name=ALL, mask=mask, ranks=ranks.full)], [sums])
            slices = list(self._slices(group, mask, ranks))
            recalls = [
                recall_sums(s.ranks[s.mask], self.users[s.mask], self.config.ks, self.window.num_users) for s in slices
            ]
            yield from self._rows(group, model, slices, recalls)

    def difference(self, model: str, ranks: Ranks, other: str, other_ranks: Ranks) -> Iterator[Measurement]:
        """Recall of ``model`` minus that of ``other`` on conversions, paired by positive."""
        yield from self._shares(
            "recall_difference", model, f"against={other}", self._hits(ranks) - self._hits(other_ranks)
        )

    def only_recalled(self, model: str, ranks: Ranks, other: str, other_ranks: Ranks) -> Iterator[Measurement]:
        """Share of conversions that ``model`` recalls and ``other``'s list of the same length does not."""
        only = self._hits(ranks) * (1 - self._hits(other_ranks))
        yield from self._shares("only_recalled", model, f"against={other}", only)

    def _hits(self, ranks: Ranks) -> NDArray[np.float64]:
        return hits_at(ranks.full, self.config.ks)

    def _shares(self, name: str, model: str, slice_: str, values: NDArray[np.float64]) -> Iterator[Measurement]:
        """Means over conversions of ``values`` [P, len(ks)]."""
        if (mask := self.window.groups.get("conversion")) is None:
            return
        users, num_users = self.users[mask], self.window.num_users
        sums = MetricSums(
            names=tuple(f"{name}@{k}" for k in self.config.ks),
            numerators=sum_by_user(values[mask], users, num_users),
            denominators=sum_by_user(np.ones_like(values[mask]), users, num_users),
        )
        yield from self._rows("conversion", model, [Slice(name=slice_, mask=mask, ranks=np.empty(0, np.int32))], [sums])

    def _slices(self, group: str, mask: NDArray[np.bool_], ranks: Ranks) -> Iterator[Slice]:
        yield Slice(name=ALL, mask=mask, ranks=ranks.full)
        families = self.window.slices if group == "conversion" else SHORT_FAMILIES
        for family in families:
            values = self.window.slices[family]
            for value in np.unique(values[mask]):
                name = f"{family}={value}"
                shown = ranks.without_removed if name == NEW_ITEMS else ranks.full
                yield Slice(name=name, mask=mask & (values == value), ranks=shown)
        if group == "conversion" and (new := mask & (self.window.slices["new_to_user"] == "true")).any():
            yield Slice(name=NEW_ITEMS_FULL_LIST, mask=new, ranks=ranks.full)

    def _rows(
        self, group: str, model: str, slices: Sequence[Slice], sums: Sequence[MetricSums]
    ) -> Iterator[Measurement]:
        """One row for each slice and metric; all columns go through the bootstrap together."""
        intervals = self.bootstrap.intervals(
            np.hstack([s.numerators for s in sums]), np.hstack([s.denominators for s in sums])
        )
        column = 0
        for shown, metric in zip(slices, sums, strict=True):
            counts = {"n_queries": len(np.unique(self.queries[shown.mask])), "n_positives": int(shown.mask.sum())}
            for name in metric.names:
                yield _measurement(f"{group}/{name}", model, shown.name, intervals, column, **counts)
                column += 1


def _measurement(
    name: str, model: str, slice_: str, intervals: Intervals, column: int, *, n_queries: int, n_positives: int
) -> Measurement:
    return Measurement(
        name=name,
        model=model,
        slice=slice_,
        value=_finite(intervals.value[column]),
        low=_finite(intervals.low[column]),
        high=_finite(intervals.high[column]),
        n_queries=n_queries,
        n_positives=n_positives,
    )


def _finite(value: np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None
