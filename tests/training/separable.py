"""A seeded world where a perfect model exists: every user buys and clicks within one group of items only."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from conversion_retrieval.features.dataset import Events, FeatureDataset, HardNegatives, Performance, Positives, Split
from conversion_retrieval.features.inputs import EntityTable
from conversion_retrieval.features.spec import Column, EntitySpec, FeatureSpec, ItemIds, Statistic

DAY = 86_400_000_000


class SeparableWorld(FeatureDataset):
    """A ``FeatureDataset`` in memory; ``splits`` by name."""

    splits: dict[str, Split]

    def split(self, name: str) -> Split:
        return self.splits[name]


def separable_world(
    *,
    num_groups: int = 20,
    items_per_group: int = 10,
    num_users: int = 400,
    queries_per_user: int = 4,
    positives_per_query: int = 2,
    hard_negatives: int = 2,
    history_length: int = 8,
    max_events: int = 5,
    tasks: tuple[int, ...] = (0, 1),
    seed: int = 0,
) -> SeparableWorld:
    """Items of group g are ``g * items_per_group ...``; the perfect recall@items_per_group is 1."""
    rng = np.random.default_rng(seed)
    num_items = num_groups * items_per_group
    group_of_user = rng.integers(0, num_groups, num_users)
    spec = FeatureSpec(
        items=EntitySpec(
            columns=(Column(name="shelf", kind="categorical", size=4), Column(name="price", kind="numeric"))
        ),
        surfaces=("home_feed", "search"),
        item_ids=ItemIds(buckets=num_items),
        history_length=history_length,
        item_performance=(Statistic(name="conversions_28d"),),
        user_aggregates=(Statistic(name="clicks_28d"),),
    )
    world = SeparableWorld(
        directory=Path(),
        spec=spec,
        metadata={"item_performance": ["conversions_28d"], "user_aggregates": ["clicks_28d"]},
        digest="",
        item_ids=pa.array([f"i{i}" for i in range(num_items)]),
        user_ids=pa.array([f"u{u}" for u in range(num_users)]),
        item_table=pa.table({}),
        user_table=pa.table({}),
        item_advertiser=(np.arange(num_items) // 5).astype(np.int32),
        items=EntityTable(
            categorical=rng.integers(1, 5, (num_items, 1)).astype(np.int32),
            numeric=rng.normal(size=(num_items, 2)).astype(np.float32),
            embeddings={},
            id_code=np.arange(1, num_items + 1),
        ),
        users=EntityTable(
            categorical=np.zeros((num_users, 0), np.int32),
            numeric=np.zeros((num_users, 0), np.float32),
            embeddings={},
            id_code=np.zeros(num_users, np.int64),
        ),
        events=_events(group_of_user, items_per_group, max_events, rng),
        stored_performance=_performance(num_items, rng),
        surface_codes=np.arange(3, dtype=np.int16),
    )
    makers = {"train": queries_per_user, "validation": 1, "test": 1}
    splits = {
        name: _split(
            name, world, group_of_user, items_per_group, count, positives_per_query, hard_negatives, tasks, rng
        )
        for name, count in makers.items()
    }
    object.__setattr__(world, "splits", splits)
    return world


def _events(group_of_user: np.ndarray, items_per_group: int, max_events: int, rng: np.random.Generator) -> Events:
    lengths = rng.integers(1, max_events + 1, len(group_of_user))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    owner = np.repeat(group_of_user, lengths)
    time = np.sort(rng.integers(0, 30 * DAY, lengths.sum()))
    return Events(
        item=(owner * items_per_group + rng.integers(0, items_per_group, len(owner))).astype(np.int32),
        action=rng.integers(2, 6, len(owner)).astype(np.int8),
        surface=rng.integers(0, 3, len(owner)).astype(np.int16),
        time=time,
        available=time,
        offsets=offsets,
    )


def _performance(num_items: int, rng: np.random.Generator) -> Performance:
    return Performance(
        times=np.array([30, 40]) * DAY,
        offsets=np.array([0, num_items, 2 * num_items]),
        items=np.tile(np.arange(num_items), 2).astype(np.int32),
        values=rng.normal(size=(2 * num_items, 1)).astype(np.float32),
    )


def _split(
    name: str,
    world: FeatureDataset,
    group_of_user: np.ndarray,
    items_per_group: int,
    queries_per_user: int,
    per_query: int,
    hard_negatives: int,
    tasks: tuple[int, ...],
    rng: np.random.Generator,
) -> Split:
    user = np.repeat(np.arange(len(group_of_user)), queries_per_user).astype(np.int32)
    count = len(user)
    query = np.repeat(np.arange(count), per_query)
    item = group_of_user[user[query]] * items_per_group + rng.integers(0, items_per_group, len(query))
    order = np.lexsort((item, query))
    flat: dict[str, Any] = {
        "task": rng.choice(tasks, len(query)).astype(np.int8),
        "event_type": np.full(len(query), 4, np.int8),
        "weight": rng.uniform(0.5, 1, len(query)).astype(np.float32),
        "attributed": np.ones(len(query), bool),
        "new_to_user": rng.random(len(query)) < 0.5,
        "value": np.ones(len(query), np.float32),
    }
    hard_query = np.repeat(np.arange(count), hard_negatives)
    other = (group_of_user[user[hard_query]] + rng.integers(1, 3, len(hard_query))) % (group_of_user.max() + 1)
    return Split(
        name=name,
        user=user,
        time=np.full(count, 45 * DAY),
        surface=rng.integers(1, 3, count).astype(np.int16),
        snapshot=rng.integers(0, 2, count).astype(np.int16),
        context_item=np.full(count, -1, np.int32),
        context_embedding=np.full(count, -1, np.int32),
        history_end=world.events.offsets[user + 1],
        user_aggregates=rng.normal(size=(count, 1)).astype(np.float32),
        context_embeddings=np.zeros((0, 0), np.float32),
        positives=Positives(
            offsets=np.arange(count + 1) * per_query, query=query, item=item[order].astype(np.int32), **flat
        ),
        hard_negatives=HardNegatives(
            offsets=np.arange(count + 1) * hard_negatives,
            query=hard_query,
            item=(other * items_per_group + rng.integers(0, items_per_group, len(hard_query))).astype(np.int32),
        ),
    )
