"""How far the rows of a log are from the order of time, counted as they are read."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa

from conversion_retrieval.table_files import TableFile
from conversion_retrieval.tables import LocatedBatch

MAX_PLACES: Final = 100


@dataclass(kw_only=True)
class TimeOrder:
    """Rows whose ``event_time`` is before that of the row above them in their file, and where the first ones are."""

    count: int = 0
    places: list[tuple[TableFile, int]] = field(default_factory=list)
    _last: tuple[TableFile, int] | None = None

    def observe(self, part: LocatedBatch) -> None:
        """Count a batch; batches come in the order of their file. Rows without a time are passed over."""
        times = part.batch["event_time"]
        rows = np.flatnonzero(times.is_valid().to_numpy(zero_copy_only=False))
        ticks = times.drop_null().cast(pa.int64()).to_numpy()
        if len(ticks) == 0:
            return
        before = self._last[1] if self._last and self._last[0] == part.file else ticks[0]
        earlier = rows[ticks < np.concatenate([[before], ticks[:-1]])]  # a difference could be beyond 64 bits
        self.count += len(earlier)
        room = MAX_PLACES - len(self.places)
        self.places += [(part.file, part.first_row + int(row)) for row in earlier[:room]]
        self._last = part.file, int(ticks[-1])
