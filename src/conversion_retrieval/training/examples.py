"""The training split as the sampler needs it: positives that count, queries by snapshot, counts for Q."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.errors import UserError
from conversion_retrieval.features.dataset import Split
from conversion_retrieval.model.two_tower import TASKS

Indices = NDArray[np.int64]


def expand(offsets: NDArray[np.int64], rows: NDArray[np.integer]) -> tuple[Indices, Indices]:
    """Entries of the compressed rows ``rows``: the position in ``rows`` that each belongs to, and its flat index."""
    lengths = offsets[rows + 1] - offsets[rows]
    owner = np.repeat(np.arange(len(rows)), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(rows) else np.zeros(0, np.int64)
    flat = np.arange(int(lengths.sum())) + np.repeat(offsets[rows] - starts, lengths)
    return owner, flat


@dataclass(frozen=True, kw_only=True)
class PositiveLists:
    """The positives that count, in compressed rows: those of query q lie between ``offsets[q:q + 2]``."""

    offsets: NDArray[np.int64]
    item: NDArray[np.int32]
    task: NDArray[np.int8]
    weight: NDArray[np.float32]

    @property
    def aimed_at(self) -> NDArray[np.bool_]:
        """Which are conversions, or all of them where engagements are all that is trained on, [P]."""
        aimed: NDArray[np.bool_] = self.task == self.task.min(initial=len(TASKS))
        return aimed

    @property
    def query(self) -> Indices:
        """The query of each positive, [P]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def trained_positives(split: Split, task_weights: dict[str, float]) -> PositiveLists:
    """Keep what the loss can learn from; a weight of zero equals the positive's absence."""
    positives = split.positives
    counts = np.array([task_weights.get(task, 0.0) > 0 for task in TASKS])
    kept = counts[positives.task] & (positives.weight > 0)
    kept_before = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    return PositiveLists(
        offsets=kept_before[positives.offsets],
        item=positives.item[kept],
        task=positives.task[kept],
        weight=positives.weight[kept],
    )


@dataclass(frozen=True, kw_only=True)
class PositiveCounts:
    """At one snapshot: how many of ``num_queries`` queries have a code (item, advertiser) as positive; codes sorted."""

    num_queries: int
    codes: Indices
    counts: Indices

    def of(self, codes: NDArray[np.integer]) -> Indices:
        """The counts of any codes, 0 where never positive."""
        if not len(self.codes):
            return np.zeros(len(codes), np.int64)
        at = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where(self.codes[at] == codes, self.counts[at], 0)


def count_queries(query: Indices, code: NDArray[np.integer], num_queries: int) -> PositiveCounts:
    """Count distinct queries a code from (query, code) pairs."""
    pairs = np.unique(code.astype(np.int64) * num_queries + query)
    codes, counts = np.unique(pairs // max(num_queries, 1), return_counts=True)
    return PositiveCounts(num_queries=num_queries, codes=codes, counts=counts)


@dataclass(frozen=True, kw_only=True)
class CodesByUser:
    """The distinct codes (items, advertisers) that each user had as positives, in compressed rows.

    Those of user u are ``codes[offsets[u]:offsets[u + 1]]``, sorted; the last row is that of unknown users: empty.
    """

    offsets: Indices
    codes: Indices

    @classmethod
    def of(cls, user: NDArray[np.integer], code: NDArray[np.integer]) -> "CodesByUser":
        """From (user, code) pairs; users below 0 are left out."""
        width, known = int(code.max(initial=0)) + 1, user >= 0
        pairs = np.unique(user[known].astype(np.int64) * width + code[known])
        bounds = np.searchsorted(pairs, width * np.arange(int(user.max(initial=-1)) + 2))
        return cls(offsets=np.append(bounds, len(pairs)), codes=pairs % width)

    def of_users(self, users: NDArray[np.integer]) -> tuple[Indices, Indices]:
        """(position in ``users``, code) for every code of each user; none for users below 0."""
        owner, flat = expand(self.offsets, np.where(users < 0, len(self.offsets) - 2, users))
        return owner, self.codes[flat]


@dataclass(frozen=True)
class Examples:
    """Training queries with at least one positive, grouped by snapshot.

    All candidates of a batch are described as of one snapshot, so a batch never mixes them; within one, batches are
    random subsets, which is what the in-batch Q assumes.
    """

    split: Split
    positives: PositiveLists
    item_advertiser: NDArray[np.int32]
    before: "Examples | None" = None  # what the model learned from first

    @classmethod
    def of(cls, split: Split, item_advertiser: NDArray[np.int32], task_weights: dict[str, float]) -> "Examples":
        """Raises ``UserError`` where there is nothing to learn from."""
        examples = cls(split, trained_positives(split, task_weights), item_advertiser)
        if not len(examples.positives.item):
            raise UserError(
                f"expected training positives of a task with weight > 0 ({task_weights}), found none of "
                f"{len(split.positives)}: check losses.task_weights and the training window"
            )
        return examples

    @cached_property
    def rows_by_snapshot(self) -> dict[int, Indices]:
        """Query rows with a positive, for each snapshot."""
        rows = np.flatnonzero(np.diff(self.positives.offsets))
        snapshot = self.split.snapshot[rows].astype(np.int64)
        order = np.argsort(snapshot, kind="stable")
        values, starts = np.unique(snapshot[order], return_index=True)
        return dict(zip(values.tolist(), np.split(rows[order], starts[1:]), strict=True))

    @cached_property
    def num_queries(self) -> int:
        """Queries with a positive."""
        return sum(map(len, self.rows_by_snapshot.values()))

    @cached_property
    def item_counts(self) -> dict[int, PositiveCounts]:
        """How often each item is a positive, for each snapshot."""
        return {s: self._count(rows, self.positives.item) for s, rows in self.rows_by_snapshot.items()}

    @cached_property
    def advertiser_counts(self) -> dict[int, PositiveCounts]:
        """How often each advertiser's items are, for each snapshot."""
        advertiser = self.item_advertiser[self.positives.item]
        return {s: self._count(rows, advertiser) for s, rows in self.rows_by_snapshot.items()}

    @cached_property
    def items_by_user(self) -> CodesByUser:
        """Each user's positive items, those of ``before`` too."""
        return CodesByUser.of(*self._users_and_items())

    @cached_property
    def advertisers_by_user(self) -> CodesByUser:
        """Their advertisers."""
        user, item = self._users_and_items()
        return CodesByUser.of(user, self.item_advertiser[item])

    def _users_and_items(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        user, item = self.split.user[self.positives.query], self.positives.item
        if self.before is None:
            return user, item
        earlier_user, earlier_item = self.before._users_and_items()
        return np.concatenate([earlier_user, user]), np.concatenate([earlier_item, item])

    def _count(self, rows: Indices, code: NDArray[np.int32]) -> PositiveCounts:
        owner, flat = expand(self.positives.offsets, rows)
        return count_queries(owner, code[flat], len(rows))

    def task_weight_per_query(self) -> dict[str, float]:
        """Mean over the queries of the weights of a task's positives, for each task that has any.

        Those of the examples ``before``, where there are such: a positive weighs the same all through a training.
        """
        if self.before is not None:
            return self.before.task_weight_per_query()
        sums = np.bincount(self.positives.task, self.positives.weight, minlength=len(TASKS)) / self.num_queries
        return {task: float(value) for task, value in zip(TASKS, sums, strict=True) if value > 0}


def batch_order(examples: Examples, batch_size: int, seed: int, epoch: int) -> list[tuple[int, Indices]]:
    """The batches of an epoch as (snapshot, query rows): a function of its arguments alone, so that a run can resume.

    A snapshot's queries are shuffled and split into batches of almost equal size, then all batches are shuffled.
    """
    generator = np.random.default_rng([seed, epoch])
    batches = []
    for snapshot, rows in examples.rows_by_snapshot.items():
        parts = -(-len(rows) // batch_size)
        batches += [(snapshot, part) for part in np.array_split(generator.permutation(rows), parts)]
    return [batches[i] for i in generator.permutation(len(batches))]


def num_batches(examples: Examples, batch_size: int) -> int:
    """Batches in an epoch."""
    return sum(-(-len(rows) // batch_size) for rows in examples.rows_by_snapshot.values())
