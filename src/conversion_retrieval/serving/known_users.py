"""The users whose events a service holds, encoded once for one bundle: a request only takes its user's part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from conversion_retrieval.features.events import ItemIndex, encode_block
from conversion_retrieval.features.timeline import Timeline, timeline
from conversion_retrieval.serving.query_features import QueryFeatures
from conversion_retrieval.serving.requests import UserEvents


@dataclass(frozen=True, kw_only=True)
class KnownUsers:
    """All events of all users as a bundle sees them, and where each user's lie."""

    past: Timeline
    positions: Mapping[str, int]
    events: UserEvents

    @classmethod
    def of(cls, events: UserEvents, features: QueryFeatures) -> "KnownUsers":
        """Encode ``events`` in the terms of one bundle."""
        catalogue = features.catalogue
        items = ItemIndex(ids=catalogue.item_ids, advertiser=catalogue.item_advertiser)
        block = encode_block(events.table, events.offsets, items, catalogue.metadata["surfaces"])
        return cls(past=timeline(block), positions=events.positions, events=events)

    def past_of(self, user_ids: Sequence[str]) -> Timeline:
        """The events of some users, in their order; of a user who is not known there are none."""
        rows = np.array([self.positions.get(user_id, -1) for user_id in user_ids], np.int64)
        return _taken(self.past, rows)

    def columns_of(self, user_ids: Sequence[str]) -> pa.Table | None:
        """A row of user columns for each of some users, null where unknown; None without a users table."""
        return self.events.user_rows(user_ids)


def _taken(past: Timeline, rows: NDArray[np.int64]) -> Timeline:
    """The timeline of the users at ``rows`` [B] (-1: one without events), who become users 0 to B - 1."""
    starts = np.where(rows >= 0, past.offsets[rows], 0)
    lengths = np.where(rows >= 0, past.offsets[rows + 1] - starts, 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    taken = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    columns = {name: getattr(past, name)[taken] for name in ("available", "time", "type", "item", "surface")}
    user = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
    return Timeline(offsets=offsets, user=user, **columns)
