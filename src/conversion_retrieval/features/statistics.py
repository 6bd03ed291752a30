"""Running mean and deviation of columns, for normalisation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.features.spec import Statistic


class Moments:
    """Sums of columns after their transform; rows come in pieces whose borders must not depend on the partitioning.

    ``log_scales`` [F]: the factor before ``log1p`` of each column, 0 for a column that stays as it is.
    """

    def __init__(self, names: Sequence[str], log_scales: NDArray[np.float64]) -> None:
        self._names, self._log_scales = names, log_scales
        self._count = 0
        self._total, self._squares = np.zeros(len(names)), np.zeros(len(names))

    def add(self, values: NDArray[np.float32], *, count: int | None = None) -> None:
        """Add raw rows [n, F]; ``count`` rows if the others are known to be zeros."""
        self._count += len(values) if count is None else count
        for column, scale in enumerate(self._log_scales):
            scaled = np.log1p(values[:, column] * np.float32(scale)) if scale else values[:, column].copy()
            self._total[column] += scaled.sum(dtype=np.float64)
            self._squares[column] += np.square(scaled).sum(dtype=np.float64)

    def statistics(self) -> list[Statistic]:
        """One statistic a column; a constant column gets deviation 1."""
        mean = self._total / max(self._count, 1)
        std = np.sqrt(np.maximum(self._squares / max(self._count, 1) - mean**2, 0))
        return [
            Statistic(
                name=name,
                transform="log1p" if scale else "identity",
                scale=float(scale) or 1.0,
                mean=float(m),
                std=float(s) if s > 1e-6 else 1.0,
            )
            for name, scale, m, s in zip(self._names, self._log_scales, mean, std, strict=True)
        ]
