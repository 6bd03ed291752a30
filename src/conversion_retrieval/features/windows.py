"""Time windows in microseconds since the epoch, UTC: the splits and the moments at which things become known."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from conversion_retrieval.errors import UserError
from conversion_retrieval.features.config import SplitConfig

SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
DAY: Final = 86_400 * SECOND
WEEK: Final = 7 * DAY
MIN_DAYS_FOR_MIDNIGHT: Final = 10
FOREVER: Final = 2**62
RECENT: Final = "recent"
TRAINING_SPLITS: Final = ("train", RECENT)
SPLITS: Final = ("train", "validation", "test", RECENT)


@dataclass(frozen=True, kw_only=True)
class Window:
    """The half-open span [start, end)."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class SplitWindows:
    """The windows by query time; ``known_until`` is when the log was taken: later reports are not in it.

    A training run at the end of its window knows only what was reported before that end, so labels of ``train`` are
    cut there; labels of ``validation`` and ``test`` use all that is known. ``recent`` is what a model may still learn
    from when validation is over: from the end of ``train`` on, as known before ``test``.
    """

    train: Window
    validation: Window
    test: Window
    as_of: int
    known_until: int

    @property
    def recent(self) -> Window:
        """What came after the training window, up to the test window and its gap."""
        return Window(start=self.train.end, end=self.validation.end)

    def __getitem__(self, name: str) -> Window:
        """The window of a split."""
        window = getattr(self, name)
        assert isinstance(window, Window)
        return window

    def known_at(self, name: str) -> int:
        """The moment before which a label of this split must have been reported."""
        return self[name].end if name in TRAINING_SPLITS else self.known_until

    def described(self) -> dict[str, Any]:
        """Boundaries as ISO times, for ``features.json``."""
        spans = {n: {"start": iso(self[n].start), "end": iso(self[n].end)} for n in SPLITS}
        return {**spans, "as_of": iso(self.as_of), "known_until": iso(self.known_until)}


def split_windows(config: SplitConfig, *, first_time: int, last_time: int, last_available: int) -> SplitWindows:
    """Lay out the windows backwards from ``as_of``.

    That is by default the midnight after the newest event; in a log of a few days, whose last hours must not be mostly
    empty, the moment after it. Raises ``UserError`` when nothing is left to train on.
    """
    span = last_time + 1 - first_time
    unit = DAY if span > MIN_DAYS_FOR_MIDNIGHT * DAY else 1
    as_of = parse_time(config.as_of) if config.as_of else -(-(last_time + 1) // unit) * unit
    usual = min(WEEK, (min(last_time + 1, as_of) - first_time) // 5)  # what came after ``as_of`` is in no window
    known_until = as_of if config.as_of else max(last_available + 1, as_of)
    gap = round(config.gap_days * DAY)
    test_end = as_of - round(config.maturity_days * DAY)
    test_start = test_end - (round(config.test_days * DAY) or usual)
    validation_start = test_start - gap - (round(config.validation_days * DAY) or usual)
    train_end = validation_start - gap
    train_start = train_end - round(config.train_days * DAY) if config.train_days else first_time
    if train_end <= first_time:
        raise UserError(
            f"expected events before {iso(train_end)}, where the training window ends, found the first at "
            f"{iso(first_time)}: lower split.validation_days, test_days, "
            "gap_days or maturity_days, or bring a longer log"
        )
    return SplitWindows(
        train=Window(start=max(train_start, first_time), end=train_end),
        validation=Window(start=validation_start, end=test_start - gap),
        test=Window(start=test_start, end=test_end),
        as_of=as_of,
        known_until=known_until,
    )


def parse_time(text: str) -> int:
    """An ISO 8601 date or time in microseconds since the epoch; UTC where it names no zone."""
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // _MICROSECOND


def iso(microseconds: int) -> str:
    """A time as ISO 8601 in UTC."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + microseconds * _MICROSECOND).isoformat()


_MICROSECOND: Final = timedelta(microseconds=1)
