"""Rows of a log that validation keeps from training: answers leave them out as well, and one line says how many."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from datetime import UTC, datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.features.windows import DAY, MINUTE, iso, parse_time
from conversion_retrieval.progress import say
from conversion_retrieval.schema import EVENT_TYPES, EVENTS, TIMESTAMP

REQUIRED: Final = tuple(column.name for column in EVENTS.columns if column.required)
FIRST_TIME: Final = parse_time("0001-01-01T00:00:00+00:00")
_Rule = Callable[[pa.RecordBatch], pa.BooleanArray]


def latest_time(config: PipelineConfig, now: datetime | None = None) -> int:
    """After this moment (microseconds) events are future-dated: now plus the tolerance that the model trained with.

    Data ahead of the clock that the model's own ``split.as_of`` let in count from there.
    """
    moments = [(now or datetime.now(UTC)).isoformat(), *filter(None, [config.split.as_of])]
    return max(map(parse_time, moments)) + round(config.validation.max_future_days * DAY)


def usable(batches: Iterable[pa.RecordBatch], latest: int, item_ids: Set[str]) -> Iterator[pa.RecordBatch]:
    """The rows that training could have seen, batch by batch; at the end says what was left out, if anything.

    ``item_ids`` are those of the log's own catalogue: an item that only the model does not know yet is no fault.
    Training keeps an event that is reported only after ``latest`` (microseconds), but until then no query knows it.
    """
    rules = _rules(latest, item_ids)
    left_out: Counter[str] = Counter()
    for batch in batches:
        keep = np.ones(batch.num_rows, bool)
        for fault, rule in rules.items():
            found = keep & _flags(rule(batch))
            left_out[fault] += int(found.sum())
            keep &= ~found
        yield batch if keep.all() else batch.filter(pa.array(keep))
    if total := left_out.total():
        told = ", ".join(f"{count:,} {fault}" for fault, count in left_out.items() if count)
        say(f"events: left out {total:,} {'row' if total == 1 else 'rows'}: {told}")


def _rules(latest: int, item_ids: Set[str]) -> dict[str, _Rule]:
    """What is wrong with a row, in the order in which validation names it, and where that is so."""
    first, moment, told = pa.scalar(FIRST_TIME, TIMESTAMP), pa.scalar(latest, TIMESTAMP), iso(latest // MINUTE * MINUTE)
    types = pa.array(EVENT_TYPES, pa.string())
    nulls = {f"without {name}": _is_null(name) for name in REQUIRED}
    return nulls | {
        "of an unknown event_type": lambda batch: pc.invert(pc.is_in(batch["event_type"], value_set=types)),
        "with event_time before year 1": lambda batch: pc.less(batch["event_time"], first),
        f"with event_time after {told}": lambda batch: pc.greater(batch["event_time"], moment),
        "on an item that the catalogue lacks": _is_on_none_of(item_ids),
        f"with reported_time after {told}": lambda batch: pc.greater(batch["reported_time"], moment),
    }


def _is_null(name: str) -> _Rule:
    return lambda batch: batch[name].is_null()


def _is_on_none_of(item_ids: Set[str]) -> _Rule:
    def rule(batch: pa.RecordBatch) -> pa.BooleanArray:
        unknown = [item_id for item_id in pc.unique(batch["item_id"]).to_pylist() if item_id not in item_ids]
        return pc.is_in(batch["item_id"], value_set=pa.array(unknown, pa.string()))

    return rule


def _flags(values: pa.BooleanArray) -> NDArray[np.bool_]:
    """A null, which compares with nothing, is no finding."""
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), bool)
