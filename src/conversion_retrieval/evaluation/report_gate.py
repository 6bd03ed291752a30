"""The gate's part of the report: the verdict, its checks with bars, the candidate against the champion by slice."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup

from conversion_retrieval.evaluation import plots
from conversion_retrieval.evaluation.report_format import interval, number

VERDICT_WORDS: Final = {
    "promote": "Promote: the candidate passed every check",
    "reject": "Rejected: the candidate failed a check",
    "insufficient_data": "No verdict: too little data to decide",
}
CHAMPION_WORDS: Final = {
    "absent": "The registry had no champion to compare with.",
    "present": "Compared, query by query, with champion {version}, re-scored on this run's window and catalogue.",
    "incomparable": "Champion {version} cannot be measured on these features: {reason}",
    "corrupt": "The champion could not be read: {reason}",
    "unreachable": "The registry could not be reached: {reason}",
}
RESULT_WORDS: Final = {True: ("✓ passed", "passed"), False: ("✗ failed", "failed"), None: ("? undecided", "unknown")}
SLICE_PREFIX: Final = "slice "
COMPARISON: Final = "not_worse_than_champion"


def gate_context(decision: dict[str, Any]) -> dict[str, Any]:
    """What the template needs of a decision."""
    champion = decision.get("champion") or {"status": "absent"}
    words = CHAMPION_WORDS[champion["status"]].format_map({"version": "", "reason": "", **champion})
    slices = [check for check in decision["checks"] if _is_slice(check)]
    others = [check for check in decision["checks"] if not _is_slice(check)]
    blamed = [check for check in slices if check["passed"] is not True]
    return {
        "decision": decision,
        "verdict_words": VERDICT_WORDS[decision["verdict"]],
        "champion_words": words,
        "checks_words": _checks_words(decision["checks"]),
        "checks": [check_row(check) for check in (*others, *blamed)],
        "slice_checks": [check_row(check) for check in slices],
        "difference_plot": _difference_plot(slices),
        "change_tiles": [_change_tile(check) for check in others if check["name"] == COMPARISON],
    }


def check_row(check: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the table of checks, with the positions of its bar in percent."""
    result, css = RESULT_WORDS[check["passed"]]
    return {
        "label": _slice_label(check),
        "result": result,
        "css": css,
        "value": number(check.get("value")),
        "interval": interval(check.get("low"), check.get("high")),
        "threshold": number(check.get("threshold")),
        "scale": scale(check),
        "n": f"{check['n']:,}" if check.get("n") is not None else "",
        "detail": check.get("detail", ""),
    }


def scale(check: Mapping[str, Any]) -> dict[str, float] | None:
    """Where 0, the value, its bounds and the threshold lie on a common scale of 0 to 100; None without numbers."""
    named = {name: check.get(name) for name in ("value", "low", "high", "threshold")}
    numbers = {name: value for name, value in named.items() if value is not None and math.isfinite(value)}
    if not {"value", "threshold"} <= set(numbers):
        return None
    numbers |= {"zero": 0.0}
    least, most = min(numbers.values()), max(numbers.values())
    width = (most - least) * 1.1 or 1.0
    start = least - (most - least) * 0.05 if least < 0 else 0.0
    return {name: round(100 * (value - start) / width, 1) for name, value in numbers.items()}


def _change_tile(check: Mapping[str, Any]) -> dict[str, str]:
    value = "?" if check["value"] is None else f"{check['value']:+.4f}"
    return {"value": value, "label": f"against the champion {interval(check.get('low'), check.get('high'))}"}


def _checks_words(checks: Sequence[Mapping[str, Any]]) -> str:
    counts = [
        (sum(check["passed"] is passed for check in checks), words[0][2:]) for passed, words in RESULT_WORDS.items()
    ]
    return f"{len(checks)} checks: " + ", ".join(f"{count} {word}" for count, word in counts if count) + "."


def _difference_plot(slices: Sequence[Mapping[str, Any]]) -> Markup | None:
    rows = {
        f"{_slice_label(check)}  (n={check['n'] or 0:,})": plots.Estimate(
            value=check["value"], low=check["low"], high=check["high"]
        )
        for check in slices
        if check["value"] is not None
    }
    if not rows:
        return None
    return plots.differences(rows, margin=slices[0]["threshold"], label=slices[0]["detail"].partition(";")[0])


def _slice_label(check: Mapping[str, Any]) -> str:
    name = str(check["name"]).removeprefix(SLICE_PREFIX)
    return name.replace("_", " ").replace("=", " ")


def _is_slice(check: Mapping[str, Any]) -> bool:
    return str(check["name"]).startswith(SLICE_PREFIX)
