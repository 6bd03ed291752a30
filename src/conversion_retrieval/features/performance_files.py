"""Writing the performance snapshots, with their statistics over the training window."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conversion_retrieval.features.array_files import GrowingArray
from conversion_retrieval.features.config import FeatureConfig
from conversion_retrieval.features.performance import BinnedCounts, SnapshotGrid, choose_columns, snapshots
from conversion_retrieval.features.spec import Statistic
from conversion_retrieval.features.statistics import Moments
from conversion_retrieval.features.windows import SplitWindows


@dataclass(frozen=True, kw_only=True)
class PerformanceSummary:
    """The columns written, each rate's prior, and the normalisation of each column."""

    names: tuple[str, ...]
    priors: dict[str, float]
    statistics: list[Statistic]


def write_performance(
    directory: Path,
    counts: BinnedCounts,
    grid: SnapshotGrid,
    windows: SplitWindows,
    num_items: int,
    config: FeatureConfig,
) -> PerformanceSummary:
    """Write ``times``, ``offsets``, ``items`` and ``values`` one snapshot at a time.

    Statistics are over all items at the snapshots inside the training window, items without a row counting as zeros.
    """
    directory.mkdir()
    columns = choose_columns(counts, grid, windows, num_items, config)
    moments = Moments(columns.names, columns.log_scales)
    offsets = [0]
    with (
        GrowingArray(directory / "items.npy", np.int32) as stored_items,
        GrowingArray(directory / "values.npy", np.float32, (len(columns.names),)) as stored_values,
    ):
        for number, (items, values) in enumerate(snapshots(counts, grid, columns, num_items)):
            if windows.train.start < grid.times[number] <= windows.train.end:
                moments.add(values, count=num_items)
            stored_items.append(items)
            stored_values.append(values)
            offsets.append(offsets[-1] + len(items))
    np.save(directory / "times.npy", grid.times, allow_pickle=False)
    np.save(directory / "offsets.npy", np.array(offsets, np.int64), allow_pickle=False)
    return PerformanceSummary(names=columns.names, priors=columns.priors, statistics=moments.statistics())
