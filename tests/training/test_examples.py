import numpy as np
import pytest

from conversion_retrieval.errors import UserError
from conversion_retrieval.training.examples import Examples, batch_order, expand, num_batches
from tests.training.separable import separable_world

WEIGHTS = {"conversion": 1.0, "engagement": 0.3}


@pytest.fixture(scope="module")
def examples() -> Examples:
    world = separable_world(num_users=60)
    return Examples.of(world.split("train"), world.item_advertiser, WEIGHTS)


def test_expand_lists_the_entries_of_compressed_rows():
    owner, flat = expand(np.array([0, 2, 2, 5]), np.array([2, 0, 1]))
    assert owner.tolist() == [0, 0, 0, 1, 1]
    assert flat.tolist() == [2, 3, 4, 0, 1]


def test_positives_of_a_task_that_weighs_nothing_are_left_out():
    world = separable_world(num_users=60)
    examples = Examples.of(world.split("train"), world.item_advertiser, {"conversion": 1.0, "engagement": 0.0})
    expected = world.split("train").positives
    assert (examples.positives.task == 0).all()
    assert len(examples.positives.item) == (expected.task == 0).sum()
    # Their lists still line up with the queries.
    assert (expected.query[expected.task == 0] == examples.positives.query).all()


def test_an_epoch_holds_every_query_once_in_batches_of_one_snapshot(examples):
    batches = batch_order(examples, 32, seed=0, epoch=0)
    assert sorted(np.concatenate([rows for _, rows in batches])) == list(range(len(examples.split)))
    assert all((examples.split.snapshot[rows] == snapshot).all() for snapshot, rows in batches)
    assert max(len(rows) for _, rows in batches) <= 32
    assert len(batches) == num_batches(examples, 32)


def test_batches_depend_on_seed_and_epoch_alone(examples):
    def flat(seed: int, epoch: int) -> list[int]:
        return np.concatenate([rows for _, rows in batch_order(examples, 32, seed, epoch)]).tolist()

    assert flat(1, 2) == flat(1, 2)
    assert flat(1, 2) != flat(1, 3)
    assert flat(1, 2) != flat(2, 2)


def test_counts_are_queries_that_have_the_item_as_positive(examples):
    split = examples.split
    counts = examples.item_counts[1]
    items = np.arange(200)
    expected = [
        len({q for q in range(len(split)) if split.snapshot[q] == 1 and i in split.positives.item[2 * q : 2 * q + 2]})
        for i in items
    ]
    assert counts.of(items).tolist() == expected
    assert counts.num_queries == (split.snapshot == 1).sum()


def test_nothing_to_learn_from_is_said_in_one_line():
    world = separable_world(num_users=10, tasks=(1,))
    with pytest.raises(UserError, match="expected training positives of a task with weight > 0"):
        Examples.of(world.split("train"), world.item_advertiser, {"conversion": 1.0})
