"""What a batch's compact rows point at, against the catalogue that they came from."""

import dataclasses

import numpy as np
import pytest
import torch

from conversion_retrieval.training.examples import batch_order
from conversion_retrieval.training.stage import make_trainer
from tests.training.runs import small_config
from tests.training.separable import separable_world


def world_with_subjects():
    """Half of the queries are about an item; of those some about one that no history holds."""
    world = separable_world(num_users=40)
    train = world.splits["train"]
    rng = np.random.default_rng(0)
    subject = np.where(rng.random(len(train)) < 0.5, -1, rng.integers(0, world.num_items, len(train)))
    world.splits["train"] = dataclasses.replace(train, context_item=subject.astype(np.int32))
    return world


@pytest.mark.parametrize("softmax", ["sampled", "full"])
def test_items_of_queries_are_those_of_the_data_batch_after_batch(softmax):
    world = world_with_subjects()
    builder = make_trainer(world, small_config(losses={"softmax": softmax})).builder
    split, unknown = world.split("train"), 0
    for index, (snapshot, rows) in enumerate(batch_order(builder.examples, 32, 0, 0)):
        batch = builder.build(snapshot, rows, epoch=0, index=index)
        arrays = world.query_arrays(split, rows)
        length = batch.queries.history_item.shape[1]  # without the padding that all queries share
        for wanted, found in (
            (arrays.context_item, batch.queries.context_item),
            (arrays.history_item[:, -length:], batch.queries.history_item),
        ):
            codes = np.where(wanted < 0, unknown, world.items.id_code[wanted])
            assert torch.equal(batch.referenced.id_code[found], torch.from_numpy(codes))
