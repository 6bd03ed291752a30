"""Cron expressions; oracle: the fields' meaning by hand."""

from datetime import UTC, datetime

import pytest

from conversion_retrieval.errors import UserError
from pipelines.cron import check_cron, next_times


def test_six_fields_fire_when_they_say():
    after = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert next_times("0 0 3 * * *", count=2, after=after) == [
        datetime(2026, 2, 1, 3, tzinfo=UTC),
        datetime(2026, 2, 2, 3, tzinfo=UTC),
    ]
    assert next_times("30 15 4 ? * MON", count=1, after=after) == [datetime(2026, 2, 2, 4, 15, 30, tzinfo=UTC)]


def test_five_fields_are_refused_with_the_reason_and_the_six_field_form():
    with pytest.raises(UserError, match=r"take the minute for the second.*write '0 0 3 \* \* \*'"):
        check_cron("0 3 * * *")


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "@daily",
        "* * * * * * *",
        "0 0 24 * * *",
        "0 61 3 * * *",
        "0 0 3 L * *",
        "0 0 3 * * MON#1",
        "0 0 3 * * ; ls",
        "H H 3 * * *",
        "0 0 3 31 2 *",
        "0 0 3 * * 7",
        "0 0 3 * * 1-7",
        "0 0 3 * * FRI-MON",
        "0 0 22-4 * * *",
        "0 0 3 * NOV-FEB *",
        "0 0 3 * FOO-BAR *",
    ],
)
def test_what_the_backend_would_not_run_as_written_is_refused(expression):
    with pytest.raises(UserError, match="expected"):
        check_cron(expression)


@pytest.mark.parametrize(
    "expression", ["0 0 3 * * *", "0 */7 * 29 2 */7", "0 */15 * * * *", "0 0 3 1,15 * ?", "0 0 3 * JAN-MAR MON-FRI"]
)
def test_what_the_backend_runs_is_accepted(expression):
    assert check_cron(f"  {expression} ") == expression
