import dataclasses

import numpy as np
import pytest
import torch

from conversion_retrieval.features.dataset import HardNegatives, Positives
from conversion_retrieval.losses.config import LossConfig
from conversion_retrieval.losses.labels import Contrast, Labels
from conversion_retrieval.losses.partition import log_partition
from conversion_retrieval.training.examples import Examples, Indices, batch_order
from conversion_retrieval.training.labelling import LabelMaker
from conversion_retrieval.training.pool import Pool
from conversion_retrieval.training.shard import Shard
from tests.training.separable import separable_world

WORLD = separable_world(num_groups=8, items_per_group=5, num_users=40, seed=3)
WEIGHTS = {"conversion": 1.0, "engagement": 0.3}
EXAMPLES = Examples.of(WORLD.split("train"), WORLD.item_advertiser, WEIGHTS)
UNEVEN = np.repeat(np.arange(7, dtype=np.int32), [1, 2, 3, 5, 7, 8, 14])  # an advertiser for each of the 40 items


def label_maker(
    config: LossConfig,
    *,
    examples: Examples = EXAMPLES,
    full: bool = False,
    shard: Shard | None = None,
    size: int = 16,
) -> LabelMaker:
    return LabelMaker(
        examples=examples,
        losses=config,
        full=full,
        batch_size=size,
        shard=shard or Shard(),
        device=torch.device("cpu"),
    )


def make(
    config: LossConfig, *, full: bool = False, shard: Shard | None = None, seed: int = 0, size: int = 16
) -> tuple[Labels, Pool, Indices]:
    maker = label_maker(config, full=full, shard=shard, size=size)
    snapshot, rows = batch_order(EXAMPLES, size, seed, 0)[0]
    labels, pool = maker.make(snapshot, rows, np.random.default_rng(seed))
    return labels, pool, rows


def positives_of(rows: Indices) -> list[list[int]]:
    positives = EXAMPLES.split.positives
    return [positives.item[positives.offsets[q] : positives.offsets[q + 1]].tolist() for q in rows]


def excluded_items(labels: Labels, pool: Pool) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for row, candidate in zip(
        labels.items.excluded.row.tolist(), labels.items.excluded.candidate.tolist(), strict=True
    ):
        found.setdefault(row, set()).add(int(pool.items[candidate]))
    return found


@pytest.mark.parametrize("full", [True, False])
def test_a_query_excludes_what_its_user_wanted_anywhere_in_the_batch(full):
    labels, pool, rows = make(LossConfig(uniform_negatives=20), full=full)
    users, wanted = EXAMPLES.split.user[rows], positives_of(rows)
    expected = {
        q: {item for other in range(len(rows)) if users[other] == users[q] for item in wanted[other]}
        for q in range(len(rows))
    }
    assert excluded_items(labels, pool) == expected


@pytest.mark.parametrize("scope", ["batch", "training_window"])
def test_batches_after_each_other_are_labelled_as_if_each_were_the_first(scope):
    config = LossConfig(softmax="sampled", uniform_negatives=3, same_user_scope=scope)

    shared = label_maker(config)
    for snapshot, rows in batch_order(EXAMPLES, 8, 0, 0):
        (labels, pool), (fresh_labels, fresh_pool) = (
            one.make(snapshot, rows, np.random.default_rng(0)) for one in (shared, label_maker(config))
        )
        assert pool.items.tolist() == fresh_pool.items.tolist()
        assert excluded_items(labels, pool) == excluded_items(fresh_labels, fresh_pool)
        for task, positives in labels.positives.items():
            assert positives.candidate.tolist() == fresh_labels.positives[task].candidate.tolist()


def window_wanted(user: int) -> set[int]:
    """Every item that any training query of the user has as a positive, query by query."""
    queries = np.flatnonzero(EXAMPLES.split.user == user)
    return {item for wanted in positives_of(queries) for item in wanted}


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_with_the_windows_scope_a_query_excludes_what_its_user_wanted_in_the_whole_training_window(full, seed):
    config = LossConfig(uniform_negatives=20, same_user_scope="training_window")
    labels, pool, rows = make(config, full=full, seed=seed)
    expected = {q: window_wanted(EXAMPLES.split.user[row]) & set(pool.candidates) for q, row in enumerate(rows)}
    assert excluded_items(labels, pool) == {q: items for q, items in expected.items() if items}
    hard = zip(labels.hard.row.tolist(), pool.items[labels.hard.candidate.numpy()].tolist(), strict=True)
    assert not any(item in window_wanted(EXAMPLES.split.user[rows[query]]) for query, item in hard)
    codes = np.unique(WORLD.item_advertiser[pool.candidates])
    pairs = labels.advertisers.contrast.excluded
    found = {(q, int(codes[number])) for q, number in zip(pairs.row.tolist(), pairs.candidate.tolist(), strict=True)}
    assert found == {
        (q, int(a))
        for q, row in enumerate(rows)
        for a in set(WORLD.item_advertiser[list(window_wanted(EXAMPLES.split.user[row]))]) & set(codes)
    }


def test_scopes_by_hand():
    """User 0 asks twice and wants items 0 and 1, user 1 wants item 2, an unknown user wants item 3, all by queries."""
    split = dataclasses.replace(
        EXAMPLES.split,
        **{
            name: getattr(EXAMPLES.split, name)[:4]
            for name in ("time", "surface", "context_item", "context_embedding", "history_end", "user_aggregates")
        },
        user=np.array([0, 0, 1, -1], np.int32),
        snapshot=np.zeros(4, np.int16),
        positives=Positives(
            offsets=np.arange(5),
            query=np.arange(4),
            item=np.arange(4, dtype=np.int32),
            **{
                name: getattr(EXAMPLES.split.positives, name)[:4]
                for name in ("event_type", "task", "weight", "attributed", "new_to_user", "value")
            },
        ),
        hard_negatives=HardNegatives(
            offsets=np.array([0, 2, 2, 2, 2]), query=np.zeros(2, np.int64), item=np.array([1, 3], np.int32)
        ),
    )
    examples = Examples.of(split, np.array([0, 1, 1, 2], np.int32), WEIGHTS)
    found = {}
    for scope in ("batch", "training_window"):
        maker = label_maker(LossConfig(same_user_scope=scope), examples=examples, full=True)
        labels, pool = maker.make(0, np.array([0, 2, 3]), np.random.default_rng(0))  # the batch lacks query 1
        pairs = zip(labels.hard.row.tolist(), labels.hard.candidate.tolist(), strict=True)
        found[scope] = excluded_items(labels, pool), list(pairs)
    assert found["batch"] == ({0: {0}, 1: {2}, 2: {3}}, [(0, 1), (0, 3)])
    assert found["training_window"] == ({0: {0, 1}, 1: {2}, 2: {3}}, [(0, 3)])


def test_positives_point_at_their_items():
    labels, pool, rows = make(LossConfig(uniform_negatives=20))
    found = sorted(
        (int(r), int(pool.items[c]), task)
        for task, p in labels.positives.items()
        for r, c in zip(p.row.tolist(), p.candidate.tolist(), strict=True)
    )
    positives = EXAMPLES.split.positives
    expected = sorted(
        (i, int(positives.item[p]), ("conversion", "engagement")[positives.task[p]])
        for i, q in enumerate(rows)
        for p in range(positives.offsets[q], positives.offsets[q + 1])
    )
    assert found == expected


def test_hard_negatives_belong_to_their_query_and_are_never_wanted_by_its_user():
    labels, pool, rows = make(LossConfig(uniform_negatives=0))
    hard = EXAMPLES.split.hard_negatives
    wanted = excluded_items(labels, pool)
    expected = sorted(
        (i, int(item))
        for i, q in enumerate(rows)
        for item in hard.item[hard.offsets[q] : hard.offsets[q + 1]]
        if item not in wanted[i]
    )
    found = zip(labels.hard.row.tolist(), pool.items[labels.hard.candidate.numpy()].tolist(), strict=True)
    assert sorted(found) == expected


def test_hard_negatives_of_others_are_no_candidates():
    labels, pool, rows = make(LossConfig(uniform_negatives=0))
    assert set(pool.candidates) == {item for wanted in positives_of(rows) for item in wanted}
    assert len(pool.items) > pool.num_candidates
    assert labels.items.num_candidates == pool.num_candidates


@pytest.mark.parametrize(("own", "same_user"), [(True, False), (False, True), (False, False)])
def test_each_mask_can_be_left_out(own, same_user):
    config = LossConfig(mask_accidental_hits=own, mask_same_user_positives=same_user, uniform_negatives=0)
    labels, pool, rows = make(config)
    users, wanted = EXAMPLES.split.user[rows], positives_of(rows)
    queries = labels.row_query.tolist()
    excluded = excluded_items(labels, pool)
    flat = [(q, item) for q, items in enumerate(wanted) for item in items]
    for row, (query, item) in enumerate(flat):
        assert queries[row] == query
        others = {i for o in range(len(rows)) if users[o] == users[query] for i in wanted[o]} - {item}
        expected = ({item} if own else set()) | (others if same_user else set())
        assert excluded.get(row, set()) == expected


def test_processes_share_the_pool_and_split_the_queries():
    config = LossConfig(uniform_negatives=20)
    whole, pool, rows = make(config)
    parts = [make(config, shard=Shard(rank=rank, world_size=2)) for rank in (0, 1)]
    assert all((part_pool.items == pool.items).all() for _, part_pool, _ in parts)
    half = len(rows) // 2
    for task, positives in whole.positives.items():
        joined = torch.cat(
            [labels.positives[task].row + start for (labels, *_), start in zip(parts, (0, half), strict=True)]
        )
        assert joined.tolist() == positives.row.tolist()


def wanted_mask(rows: Indices, codes: np.ndarray) -> np.ndarray:
    """[B, codes]: what the query's user wanted anywhere in the batch, by the code of each item."""
    users, mask = EXAMPLES.split.user[rows], np.zeros((len(rows), int(codes.max()) + 1), bool)
    for q, user in enumerate(users):
        for other in np.flatnonzero(users == user):
            mask[q, codes[positives_of(rows[other : other + 1])[0]]] = True
    return mask


def candidates_of(labels: Labels, pool: Pool, codes: np.ndarray) -> tuple[Contrast, np.ndarray]:
    """The contrast of items or of advertisers, given the code of each item, and which codes its candidates are."""
    if len(np.unique(codes)) == len(codes):
        return labels.items, pool.candidates
    return labels.advertisers.contrast, np.unique(codes[pool.candidates])


def mean_partition(
    config: LossConfig, draws: int, size: int, codes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over draws of each query's estimated denominator, its standard error, and the full softmax's.

    Over items, or over the advertisers that ``codes`` gives each item.
    """
    codes = np.arange(WORLD.num_items) if codes is None else codes
    generator = torch.Generator().manual_seed(5)
    queries = torch.randn(len(EXAMPLES.split), 4, generator=generator)
    vectors = torch.randn(int(codes.max()) + 1, 4, generator=generator) * 0.5
    sums = np.zeros((3, len(queries)))
    exact = np.zeros(len(queries))
    maker = label_maker(config, size=size, examples=Examples.of(WORLD.split("train"), codes.astype(np.int32), WEIGHTS))
    for seed in range(draws):
        for snapshot, rows in batch_order(EXAMPLES, size, seed, 0):
            labels, pool = maker.make(snapshot, rows, np.random.default_rng([seed, int(rows[0])]))
            contrast, chosen = candidates_of(labels, pool, codes)
            z = log_partition(
                queries[rows], vectors[chosen], excluded=contrast.excluded, offsets=contrast.offsets
            ).exp()
            sums[:, rows] += np.stack([np.ones(len(rows)), z.numpy(), z.square().numpy()])
            scores = (queries[rows] @ vectors.T).exp()
            mask = torch.from_numpy(wanted_mask(rows, codes))
            exact[rows] += scores.masked_fill(mask, 0).sum(1).numpy()
    mean = sums[1] / sums[0]
    error = np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 0) / sums[0])
    return mean, error, exact / sums[0]


@pytest.mark.parametrize("of", ["items", "advertisers"])
@pytest.mark.parametrize(
    "config",
    [LossConfig(uniform_negatives=12), LossConfig(uniform_negatives=12, in_batch_negatives=False)],
    ids=["in_batch_and_uniform", "uniform"],
)
def test_logq_makes_the_sampled_denominator_unbiased(config, of):
    # Advertisers have from 1 to 14 items: neither their items' Q nor one over the number of items is theirs.
    mean, error, exact = mean_partition(config, draws=100, size=8, codes=UNEVEN if of == "advertisers" else None)
    z = (mean - exact) / error
    # One number a query, their mean over 160 queries: a wrong Q moves it by far more than three standard errors.
    assert abs((mean / exact).mean() - 1) < 0.02
    assert np.quantile(np.abs(z), 0.9) < 3.5


def test_without_logq_the_sampled_denominator_is_far_off():
    mean, _, exact = mean_partition(LossConfig(uniform_negatives=12, logq_correction=False), draws=10, size=8)
    assert (mean / exact).mean() < 0.8


def test_advertiser_labels_exclude_the_users_own_advertisers():
    labels, pool, rows = make(LossConfig(uniform_negatives=0))
    advertisers = labels.advertisers
    codes = np.unique(WORLD.item_advertiser[pool.candidates])
    assert (codes[advertisers.group.numpy()] == WORLD.item_advertiser[pool.candidates]).all()
    users, wanted = EXAMPLES.split.user[rows], positives_of(rows)
    found: dict[int, set[int]] = {}
    excluded = advertisers.contrast.excluded
    for row, number in zip(excluded.row.tolist(), excluded.candidate.tolist(), strict=True):
        found.setdefault(row, set()).add(int(codes[number]))
    for q in range(len(rows)):
        own = {int(WORLD.item_advertiser[i]) for o in range(len(rows)) if users[o] == users[q] for i in wanted[o]}
        assert found[q] == own


def test_scales_make_every_positive_weigh_the_same_in_every_batch():
    """Oracle: one factor for all batches, however few queries their snapshots have, and a mean batch that sums to 1."""
    split = EXAMPLES.split
    lonely = dataclasses.replace(split, snapshot=np.where(np.arange(len(split)) < 3, 0, 1).astype(np.int16))
    examples = Examples.of(lonely, WORLD.item_advertiser, WEIGHTS)
    batches = batch_order(examples, 16, 0, 0)
    assert {len(rows) for _, rows in batches} >= {3, 15}
    maker = label_maker(LossConfig(), examples=examples, full=True)
    made = [maker.make(snapshot, rows, np.random.default_rng(0))[0] for snapshot, rows in batches]
    for task in ("conversion", "engagement"):
        assert len({labels.scales[task] for labels in made}) == 1
        shares = [float(labels.positives[task].weight.sum()) * labels.scales[task] for labels in made]
        assert np.mean(shares) == pytest.approx(1, rel=1e-5)


def test_a_catalogue_smaller_than_the_batch_is_fine():
    labels, pool, rows = make(LossConfig(uniform_negatives=500), size=1000)
    assert len(rows) > WORLD.num_items
    assert pool.num_candidates <= WORLD.num_items
    assert torch.isfinite(labels.items.offsets).all()
