"""What the labels look like: attribution, delay, weights and how noisy they are per item and advertiser."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.features.events import ADD_TO_CART, CHECKOUT, CLICK, IMPRESSION
from conversion_retrieval.features.windows import DAY, SPLITS, SplitWindows

DELAY_DAYS: Final = (0.0, 1 / 24, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 14.0, 21.0, 30.0)
WEIGHT_BINS: Final = 20


def attribution_counts(touch_type: NDArray[np.int8], in_catalogue: NDArray[np.bool_]) -> dict[str, int]:
    """Conversions by what they were credited to; ``dropped`` ones are left out by configuration."""
    counted = touch_type[in_catalogue]
    return {
        "conversions": len(touch_type),
        "click": int(np.sum(counted == CLICK)),
        "impression": int(np.sum(counted == IMPRESSION)),
        "unattributed": int(np.sum(counted == -1)),
        "dropped_unattributed": int(np.sum(counted == -2)),
        "dropped_outside_catalogue": int(np.sum(~in_catalogue)),
    }


def delay_curve(time: NDArray[np.int64], available: NDArray[np.int64], windows: SplitWindows) -> dict[str, Any]:
    """How late conversions become known, and what share of each window's is expected to be missing still.

    ``share_reported`` is the empirical distribution of ``available - event_time`` over conversions at least as old as
    the longest listed delay (over all, when none is that old). A window's expected total is the sum of
    ``1 / F(age)`` over its known conversions (inverse probability of being reported before the moment that counts).
    """
    delay = (available - time) / DAY
    mature = time <= windows.known_until - DELAY_DAYS[-1] * DAY
    sample = np.sort(delay[mature] if mature.any() else delay)
    expected = {}
    for name in SPLITS:
        window, known_at = windows[name], windows.known_at(name)
        inside = (time >= window.start) & (time < window.end) & (available < known_at)
        expected[name] = _missing_share((known_at - time[inside]) / DAY, sample)
    return {
        "days": [round(days, 4) for days in DELAY_DAYS],
        "share_reported": [_share(sample, days) for days in DELAY_DAYS],
        "n": len(sample),
        "expected_missing_share": expected,
    }


def weight_statistics(weight: NDArray[np.float32], task: NDArray[np.int8]) -> dict[str, Any]:
    """Per task: count, histogram of weights, and the effective sample size ``(sum w)^2 / sum w^2``."""
    result = {}
    for code, name in enumerate(("conversion", "engagement")):
        weights = weight[task == code].astype(np.float64)
        top = max(float(weights.max(initial=0)), 1.0)
        counts, edges = np.histogram(weights, bins=WEIGHT_BINS, range=(0, top))
        squares = float(np.sum(weights**2))
        result[name] = {
            "n": len(weights),
            "histogram": {"edges": [round(float(e), 6) for e in edges], "counts": counts.tolist()},
            "effective_sample_size": float(weights.sum()) ** 2 / squares if squares else 0.0,
        }
    return result


def label_variance(in_training: NDArray[np.int64], advertiser: NDArray[np.int32]) -> dict[str, Any]:
    """How noisy conversion labels are per item and, pooled, per advertiser, from training events [N, event types].

    ``relative_variance`` is the mean over groups with conversions of ``1 / conversions``, the squared relative error of
    a Poisson count; ``rate_variance`` the mean over groups with exposures (impressions and clicks) of
    ``p (1 - p) / n``, the sampling variance of a conversion rate.
    """
    conversions = in_training[:, [ADD_TO_CART, CHECKOUT]].sum(axis=1)
    exposures = in_training[:, [IMPRESSION, CLICK]].sum(axis=1)
    pooled = int(advertiser.max(initial=-1)) + 1
    return {
        "item": _variance(conversions, exposures),
        "advertiser": _variance(
            np.bincount(advertiser, weights=conversions, minlength=pooled),
            np.bincount(advertiser, weights=exposures, minlength=pooled),
        ),
    }


def _variance(conversions: NDArray[Any], exposures: NDArray[Any]) -> dict[str, Any]:
    converted, exposed = conversions > 0, exposures > 0
    rate = np.minimum(conversions[exposed] / exposures[exposed], 1.0)
    return {
        "groups": len(conversions),
        "groups_with_conversions": int(converted.sum()),
        "mean_conversions": _mean(conversions[converted]),
        "relative_variance": _mean(1 / conversions[converted]),
        "rate_variance": _mean(rate * (1 - rate) / exposures[exposed]),
    }


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def _share(sample: NDArray[np.float64], days: float) -> float | None:
    return float(np.searchsorted(sample, days, side="right") / len(sample)) if len(sample) else None


def _missing_share(age: NDArray[np.float64], sample: NDArray[np.float64]) -> float | None:
    if len(age) == 0 or len(sample) == 0:
        return None
    # What takes exactly that long is reported at the moment itself, and known is what was reported before it.
    reported = np.maximum(np.searchsorted(sample, age, side="left"), 1) / len(sample)
    return float(1 - len(age) / np.sum(1 / reported))
