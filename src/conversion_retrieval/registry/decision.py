"""What the gate says: checks with their numbers, a verdict, and a reason that a person can read."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from conversion_retrieval.contracts import write_json
from conversion_retrieval.errors import CorruptArtifactError

Verdict = Literal["promote", "reject", "insufficient_data"]
ChampionStatus = Literal["absent", "present", "incomparable", "corrupt", "unreachable"]
DECISION_FILE: Final = "decision.json"


@dataclass(frozen=True, kw_only=True)
class ChampionState:
    """What the evaluation found in the registry: the candidate was compared with this and nothing else."""

    status: ChampionStatus
    version: str = ""
    digest: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One condition of a promotion.

    ``passed`` is None where the numbers could not decide: a value is missing, not finite, or too uncertain.
    ``low`` and ``high`` bound ``value`` at the configured confidence level; ``n`` counts conversions unless
    ``detail`` says otherwise.
    """

    name: str
    passed: bool | None
    value: float | None = None
    threshold: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A verdict with everything that led to it; ``candidate`` maps each artifact's kind to its digest."""

    verdict: Verdict
    reason: str
    checks: tuple[Check, ...]
    champion: ChampionState
    candidate: dict[str, str] = field(default_factory=dict)


def write_decision(directory: Path, decision: Decision) -> None:
    """Write ``decision.json`` into ``directory``."""
    write_json(directory / DECISION_FILE, asdict(decision))


def read_decision(directory: Path) -> Decision:
    """Read ``decision.json``; ``CorruptArtifactError`` for a file that is not one."""
    path = directory / DECISION_FILE
    try:
        return parse_decision(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptArtifactError(f"expected a gate decision at {path}, found: {error}") from None


def parse_decision(values: dict[str, Any]) -> Decision:
    """A decision from its JSON values."""
    return Decision(
        verdict=values["verdict"],
        reason=values["reason"],
        checks=tuple(Check(**check) for check in values["checks"]),
        champion=ChampionState(**values["champion"]),
        candidate=dict(values["candidate"]),
    )
