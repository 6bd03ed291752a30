"""Which recalls and paired differences a decision needs, as columns of one shared bootstrap."""

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.registry.config import GateConfig
from conversion_retrieval.registry.gate_inputs import CANDIDATE, CHAMPION, ConversionRanks
from conversion_retrieval.registry.resampling import Estimates, bootstrap_ratios


class RecallColumns:
    """The ratios to estimate: the candidate's recall, then differences overall, then differences by slice."""

    def __init__(self, ranks: ConversionRanks, config: GateConfig) -> None:
        self.ranks, self.config = ranks, config
        self.hits = _hits(ranks.candidate, config.k)
        self.names = [CANDIDATE]
        everything = np.ones(len(ranks))
        self._pairs = [(self.hits, everything)]
        for name, compared in ranks.compared.items():
            self._add(f"{CANDIDATE} - {name}", self.hits - _hits(compared, config.k), everything)
        self.skipped: dict[str, int] = {}
        if CHAMPION in ranks.compared:
            self._add_slices(self.hits - _hits(ranks.compared[CHAMPION], config.k))

    def estimate(self) -> Estimates:
        """All ratios with their shared bootstrap replicates."""
        numerators, denominators = (np.stack(side, axis=1) for side in zip(*self._pairs, strict=True))
        return bootstrap_ratios(
            numerators, denominators, self.ranks.users, num_resamples=self.config.num_resamples, seed=self.config.seed
        )

    def index(self, name: str) -> int | None:
        """The column called ``name``, None if it was not asked for."""
        return self.names.index(name) if name in self.names else None

    def count(self, column: int) -> int:
        """How many conversions a column rests on."""
        return int(self._pairs[column][1].sum())

    @property
    def slice_columns(self) -> list[int]:
        """The columns of differences within a slice."""
        return [i for i, name in enumerate(self.names) if "=" in name]

    def _add(self, name: str, numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> None:
        self.names.append(name)
        self._pairs.append((numerator, denominator))

    def _add_slices(self, difference: NDArray[np.float64]) -> None:
        for name in self.config.guardrail_slices:
            for value in np.unique(self.ranks.slices.get(name, np.empty(0, np.str_))):
                inside = self.ranks.slices[name] == value
                count, num_users = int(inside.sum()), len(np.unique(self.ranks.users[inside]))
                if count < self.config.min_slice_conversions or num_users < 2:
                    self.skipped[f"{name}={value}"] = count
                else:
                    self._add(f"{name}={value}", np.where(inside, difference, 0.0), inside.astype(np.float64))


def _hits(ranks: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """1 where the rank is among the first ``k``, 0 where it is not, NaN where it was not measured."""
    return np.where(np.isnan(ranks), np.nan, (ranks >= 0) & (ranks < k))
