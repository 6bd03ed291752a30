"""The three windows; oracle: the calendar."""

import pytest

from conversion_retrieval.errors import UserError
from conversion_retrieval.features.config import SplitConfig
from conversion_retrieval.features.windows import parse_time, split_windows


def _windows(first, last, **config):
    first_time, last_time = parse_time(first), parse_time(last)
    windows = split_windows(
        SplitConfig(**config), first_time=first_time, last_time=last_time, last_available=last_time
    ).described()
    return [windows[name][end][:16] for name in ("train", "validation", "test") for end in ("start", "end")]


def test_a_long_log_is_split_at_midnights_a_week_each():
    assert _windows("2026-01-01T06:00", "2026-03-01T10:00") == [
        "2026-01-01T06:00", "2026-02-16T00:00",
        "2026-02-16T00:00", "2026-02-23T00:00",
        "2026-02-23T00:00", "2026-03-02T00:00",
    ]  # fmt: skip


def test_a_short_log_gives_a_fifth_of_itself_to_validation_and_to_test():
    # Ten hours: two for each window, up to the newest event and not to the midnight after it.
    assert _windows("2026-01-01T00:00", "2026-01-01T10:00") == [
        "2026-01-01T00:00", "2026-01-01T06:00",
        "2026-01-01T06:00", "2026-01-01T08:00",
        "2026-01-01T08:00", "2026-01-01T10:00",
    ]  # fmt: skip


def test_what_came_after_as_of_lengthens_no_window():
    """Oracle: the log that ends there, four weeks of which a fifth is less than a week."""
    found = _windows("2026-01-01", "2026-06-01", as_of="2026-01-29")
    assert found == _windows("2026-01-01", "2026-01-28T23:59:59.999999", as_of="2026-01-29")
    assert found[-2:] == ["2026-01-23T09:36", "2026-01-29T00:00"]


def test_given_lengths_gap_and_maturity_are_kept_to_the_day():
    found = _windows(
        "2026-01-01", "2026-01-30T12:00", validation_days=3, test_days=4, gap_days=1, maturity_days=2, train_days=10
    )
    # Backwards from the 31st: two days to mature, four to test, one apart, three to validate, one apart, ten to train.
    assert found == [
        "2026-01-10T00:00", "2026-01-20T00:00",
        "2026-01-21T00:00", "2026-01-24T00:00",
        "2026-01-25T00:00", "2026-01-29T00:00",
    ]  # fmt: skip


def test_a_log_shorter_than_its_windows_is_refused_with_what_to_lower():
    with pytest.raises(UserError, match=r"lower split\.validation_days"):
        _windows("2026-01-01", "2026-01-12", validation_days=7, test_days=7)
