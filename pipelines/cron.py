"""Cron expressions as Kubeflow Pipelines reads them: six fields, the first one seconds."""

import re
from datetime import UTC, datetime
from typing import Final

from croniter import CroniterBadDateError, croniter

from conversion_retrieval.errors import UserError

FIELDS: Final = ("second", "minute", "hour", "day of month", "month", "day of week")
# The backend's parser knows lists, ranges, steps, names and "?"; croniter's extensions beyond that must not pass.
FIELD: Final = re.compile(r"[\d*/,?-]+|(?:(?:[A-Za-z]{3})[,-]?)+")
RANGE: Final = re.compile(r"(\d+|[A-Za-z]{3})-(\d+|[A-Za-z]{3})")
SEVEN: Final = re.compile(r"(?<![\d/])7")  # but as a step
MONTHS: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


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
    # croniter takes 7 for Sunday as well, the backend 0 to 6.
    in_range = croniter.is_valid(_as_croniter(fields), second_at_beginning=True) and not SEVEN.search(fields[-1])
    if not in_range:
        raise UserError(f"expected a cron expression within its fields' ranges, found {expression!r}")
    for name, field in zip(FIELDS, fields, strict=True):
        if any(_number(first) > _number(last) for first, last in RANGE.findall(field)):
            raise UserError(f"expected ranges from low to high in a cron {name}, found {field!r} in {expression!r}")
    try:
        next_times(expression, count=1)
    except CroniterBadDateError:
        raise UserError(f"expected a cron expression that comes about, found no date for {expression!r}") from None
    return " ".join(fields)


def next_times(expression: str, *, count: int = 3, after: datetime | None = None) -> list[datetime]:
    """When the schedule fires next, in UTC, the backend's time zone."""
    iterator = croniter(_as_croniter(expression.split()), after or datetime.now(UTC), second_at_beginning=True)
    return [iterator.get_next(datetime) for _ in range(count)]


def _number(text: str) -> int:
    """A number, or the place of a month's or a day's name in its order."""
    names = MONTHS if text.upper() in MONTHS else DAYS
    return int(text) if text.isdigit() else names.index(text.upper())


def _as_croniter(fields: list[str]) -> str:
    return " ".join(fields).replace("?", "*")
