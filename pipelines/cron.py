"""Cron expressions as Kubeflow Pipelines reads them: six fields, the first one seconds."""

import re
from datetime import UTC, datetime
from typing import Final

from croniter import croniter

from conversion_retrieval.errors import UserError

FIELDS: Final = ("second", "minute", "hour", "day of month", "month", "day of week")
# The backend's parser knows lists, ranges, steps, names and "?"; croniter's extensions beyond that must not pass.
FIELD: Final = re.compile(r"[\d*/,?-]+|(?:(?:[A-Za-z]{3})[,-]?)+")


def check_cron(expression: str) -> str:
    """``expression`` with single spaces if the backend would run it as written, else ``UserError`` with the reason."""
    fields = expression.split()
    if len(fields) == 5:
        raise UserError(
            f"expected six cron fields ({', '.join(FIELDS)}), found five in {expression!r}: the backend would take the "
            f"minute for the second and shift all others; write '0 {' '.join(fields)}'"
        )
    if len(fields) != len(FIELDS):
        raise UserError(f"expected six cron fields ({', '.join(FIELDS)}), found {len(fields)} in {expression!r}")
    for name, field in zip(FIELDS, fields, strict=True):
        if not FIELD.fullmatch(field):
            raise UserError(f"expected a cron {name} such as *, 5, 1-5, */15 or MON, found {field!r} in {expression!r}")
    if not croniter.is_valid(_as_croniter(fields), second_at_beginning=True):
        raise UserError(f"expected a cron expression within its fields' ranges, found {expression!r}")
    return " ".join(fields)


def next_times(expression: str, *, count: int = 3, after: datetime | None = None) -> list[datetime]:
    """When the schedule fires next, in UTC, the backend's time zone."""
    iterator = croniter(_as_croniter(expression.split()), after or datetime.now(UTC), second_at_beginning=True)
    return [iterator.get_next(datetime) for _ in range(count)]


def _as_croniter(fields: list[str]) -> str:
    return " ".join(fields).replace("?", "*")
