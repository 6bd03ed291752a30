"""Slices: what kind of query and item each positive of a split is, by what was known before the window began.

Deciles hold equal shares of the conversions before the window rather than equal numbers of advertisers or items:
decile 01 is the many small ones that together made a tenth of the conversions, decile 10 the few largest. Counting
heads instead would leave nine deciles nearly empty of conversions.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.evaluation.events import CONVERSION_ACTIONS, EventLog
from conversion_retrieval.features.dataset import FeatureDataset, Split

HISTORY_BINS: Final = ((0, "0"), (1, "001-004"), (5, "005-019"), (20, "020-049"), (50, "050-199"), (200, "200+"))
NO_CONVERSIONS: Final = "none"


def slice_columns(dataset: FeatureDataset, split: Split, log: EventLog, before: int) -> dict[str, NDArray[np.str_]]:
    """One value a positive of ``split`` for each slice; ``before`` is the time the window begins."""
    item, query = split.positives.item, split.positives.query
    counts = conversions_before(log, before)
    by_advertiser = np.bincount(dataset.item_advertiser, weights=counts, minlength=1).astype(np.float64)
    history = split.known_end - log.offsets[split.user]
    return {
        "surface": _names(["unknown", *dataset.spec.surfaces], split.surface[query]),
        "advertiser_size_decile": mass_deciles(by_advertiser)[dataset.item_advertiser[item]],
        "item_popularity_decile": mass_deciles(counts)[item],
        "item_status": np.where(known_before(log, before)[item], "known", "cold"),
        "user_status": np.where(history[query] > 0, "known", "cold"),
        "history_length": history_bins(history)[query],
        "new_to_user": np.where(split.positives.new_to_user, "true", "false"),
    }


def conversions_before(log: EventLog, before: int) -> NDArray[np.float64]:
    """Conversions of each item [N] known before a time."""
    counted = (log.available < before) & (log.item >= 0) & np.isin(log.action, CONVERSION_ACTIONS)
    return np.bincount(log.item[counted], minlength=log.num_items).astype(np.float64)


def known_before(log: EventLog, before: int) -> NDArray[np.bool_]:
    """Whether each item [N] had any event in a user's history before a time."""
    known = np.zeros(log.num_items, np.bool_)
    known[log.item[(log.available < before) & (log.item >= 0)]] = True
    return known


def mass_deciles(counts: NDArray[np.float64]) -> NDArray[np.str_]:
    """Deciles "01" to "10" such that each holds about a tenth of the total; "none" where the count is 0.

    Entities are taken from the smallest up; one belongs to the decile in which the middle of its own mass falls, and
    equal counts belong to the same decile.
    """
    sizes, code = np.unique(counts, return_inverse=True)
    mass = sizes * np.bincount(code, minlength=len(sizes))
    middle = (np.cumsum(mass) - mass / 2) / max(mass.sum(), 1.0)
    labels = np.array([f"{decile:02d}" for decile in np.minimum(np.floor(middle * 10), 9).astype(int) + 1])
    deciles: NDArray[np.str_] = np.where(sizes > 0, labels, NO_CONVERSIONS)[code]
    return deciles


def history_bins(lengths: NDArray[np.integer]) -> NDArray[np.str_]:
    """The bin of each history's number of events."""
    starts = [start for start, _ in HISTORY_BINS]
    return _names([label for _, label in HISTORY_BINS], np.searchsorted(starts, lengths, "right") - 1)


def _names(names: Sequence[str], codes: NDArray[np.integer]) -> NDArray[np.str_]:
    named: NDArray[np.str_] = np.array(names, dtype=np.str_)[codes]
    return named
