"""Do click weights mean something? How often clicks of each weight were followed by an attributed conversion."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import binomtest

from conversion_retrieval.evaluation.window import CONVERSION_TASK
from conversion_retrieval.schema import EVENT_TYPES

BINS: Final = 10
COLUMNS: Final = ("query", "item", "event_type", "task", "weight", "attributed")
CLICK: Final = EVENT_TYPES.index("click")


@dataclass(frozen=True, kw_only=True)
class WeightBin:
    """Clicks whose weights lie in one bin: ``share`` of them led to a conversion, with its 95% Wilson interval."""

    mean_weight: float
    clicks: int
    conversions: int
    share: float
    low: float
    high: float


def click_calibration(features_dir: Path, *, top: float = 1.0) -> list[WeightBin]:
    """The training clicks in up to ten bins of weights from 0 to ``top``; empty where there are no clicks.

    A click led to a conversion if one is credited to its request, on the clicked item, by last-touch attribution. The
    file is read a row group at a time; requests that straddle two are looked at in each.
    """
    clicks, conversions, weights = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64), np.zeros(BINS)
    for weight, converted in _clicks(features_dir / "train" / "positives.parquet"):
        code = np.minimum((weight / top * BINS).astype(int), BINS - 1)
        clicks += np.bincount(code, minlength=BINS)
        conversions += np.bincount(code[converted], minlength=BINS)
        weights += np.bincount(code, weights=weight, minlength=BINS)
    return [_bin(weights[i] / clicks[i], int(clicks[i]), int(conversions[i])) for i in np.flatnonzero(clicks)]


def _clicks(path: Path) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Weight, and whether a conversion followed, of the clicks in each row group."""
    if not path.exists():
        return
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=list(COLUMNS))
            columns = {name: table[name].to_numpy() for name in COLUMNS}
            key = columns["query"] * (int(columns["item"].max(initial=0)) + 1) + columns["item"]
            credited = (columns["task"] == CONVERSION_TASK) & columns["attributed"].astype(bool)
            click = columns["event_type"] == CLICK
            yield columns["weight"][click].astype(np.float64), np.isin(key[click], key[credited])


def _bin(mean_weight: float, clicks: int, conversions: int) -> WeightBin:
    interval = binomtest(conversions, clicks).proportion_ci(method="wilson")
    return WeightBin(
        mean_weight=float(mean_weight),
        clicks=clicks,
        conversions=conversions,
        share=conversions / clicks,
        low=float(interval.low),
        high=float(interval.high),
    )
