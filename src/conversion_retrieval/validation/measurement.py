"""One measured number of the tables with its limits."""

from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning"]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One measured number and its limits; ``rule`` says what happens to the rows: stop, drop, repair or keep.

    ``setting`` is the option that holds the limit, empty where none does; ``meaning`` what the name leaves open.
    """

    name: str
    table: str
    column: str
    severity: Severity
    observed: float
    maximum: float | None = None
    minimum: float | None = None
    count: int
    rule: str
    sample: list[Row] = field(default_factory=list)
    setting: str = ""
    meaning: str = ""
