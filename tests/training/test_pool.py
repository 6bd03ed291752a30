import numpy as np
import pytest

from conversion_retrieval.losses.config import LossConfig
from conversion_retrieval.training.numbering import Numbering
from conversion_retrieval.training.pool import draw_pool

NUM_ITEMS = 50
POSITIVES, OTHERS = np.array([7, 3, 7, 40]), np.array([3, 11, 2])


@pytest.mark.parametrize("in_batch", [True, False])
def test_a_pool_after_another_knows_its_own_items_and_candidates(in_batch):
    config = LossConfig(softmax="sampled", in_batch_negatives=in_batch, uniform_negatives=5)
    numbering = Numbering(num_items=NUM_ITEMS)
    for seed in range(20):  # what an earlier pool numbered must not show through
        drawn = np.random.default_rng(seed).integers(0, NUM_ITEMS, 5)
        pool = draw_pool(POSITIVES, OTHERS, numbering, config, np.random.default_rng(seed))
        candidates = set(drawn.tolist()) | (set(POSITIVES.tolist()) if in_batch else set())
        assert pool.candidates.tolist() == sorted(candidates)
        assert sorted(pool.items.tolist()) == sorted(candidates | set(POSITIVES.tolist()) | set(OTHERS.tolist()))
        assert pool.positions(pool.items).tolist() == list(range(len(pool.items)))
        every = np.arange(NUM_ITEMS)
        assert set(every[pool.is_candidate(every)].tolist()) == candidates
