"""The promotion gate: a pure function from measurements to a decision. No files, no network, no credentials.

A check passes, fails, or cannot be decided; a missing or non-finite number is never a pass. Failures of integrity
(digests, validation, champion pointer) reject before anything else is asked; too little data is said before quality
is judged; then any failed check rejects, and any undecided one means insufficient data.
"""

from conversion_retrieval.evaluation.report_format import percent
from conversion_retrieval.registry.checks import integrity_checks, quality_checks, volume_checks
from conversion_retrieval.registry.config import GateConfig
from conversion_retrieval.registry.decision import Check, Decision, Verdict
from conversion_retrieval.registry.gate_inputs import GateInputs


def decide(inputs: GateInputs, config: GateConfig) -> Decision:
    """Judge a candidate; see ``GateConfig`` for the thresholds and ``docs/gate.md`` for each check's rule."""
    integrity = list(integrity_checks(inputs))
    volume = list(volume_checks(inputs, config))
    quality = list(quality_checks(inputs, config))
    verdict = _verdict(integrity, volume, quality)
    checks = (*integrity, *volume, *quality)
    return Decision(
        verdict=verdict,
        reason=_reason(verdict, checks, inputs, config),
        checks=checks,
        champion=inputs.champion,
        candidate=dict(inputs.candidate_digests),
    )


def _verdict(integrity: list[Check], volume: list[Check], quality: list[Check]) -> Verdict:
    if any(check.passed is False for check in integrity):
        return "reject"
    if any(check.passed is not True for check in (*integrity, *volume)):
        return "insufficient_data"
    if any(check.passed is False for check in quality):
        return "reject"
    return "promote" if all(check.passed for check in quality) else "insufficient_data"


def _reason(verdict: Verdict, checks: tuple[Check, ...], inputs: GateInputs, config: GateConfig) -> str:
    headline = _headline(checks, inputs, config)
    if verdict == "promote":
        return f"Promoted: {headline}; all {len(checks)} checks passed."
    cause = False if verdict == "reject" else None
    blamed = [check for check in checks if check.passed is cause]
    word = {"reject": "Rejected", "insufficient_data": "Not enough to decide"}[verdict]
    others = f" (and {len(blamed) - 1} more)" if len(blamed) > 1 else ""
    return f"{word}: {_describe(blamed[0])}{others}; {headline}."


def _describe(check: Check) -> str:
    if check.value is None or check.threshold is None:
        return f"{check.name}: {check.detail}"
    interval = "" if check.low is None or check.high is None else f" ({check.low:.4g} to {check.high:.4g})"
    return f"{check.name} is {check.value:.4g}{interval} against {check.threshold:.4g}: {check.detail}"


def _headline(checks: tuple[Check, ...], inputs: GateInputs, config: GateConfig) -> str:
    by_name = {check.name: check for check in checks}
    recall, change = by_name["recall_floor"], by_name.get("not_worse_than_champion")
    if recall.value is None:
        return f"conversion recall@{config.k} could not be measured on {len(inputs.ranks):,} conversions"
    text = f"conversion recall@{config.k} is {recall.value:.4f} on {len(inputs.ranks):,} conversions"
    if recall.low is not None and recall.high is not None:
        text += f" ({percent(config.confidence_level)} interval {recall.low:.4f} to {recall.high:.4f})"
    if change and change.value is not None and change.low is not None and change.high is not None:
        version = inputs.champion.version
        text += f", {change.value:+.4f} against champion {version} ({change.low:+.4f} to {change.high:+.4f})"
    return text
