import threading

import pytest
import torch

from conversion_retrieval.training.prefetch import prefetch, prefetch_depth


@pytest.mark.parametrize("depth", [0, 1, 2, 9])
def test_results_come_in_order(depth):
    assert list(prefetch(lambda x: x * x, range(7), depth=depth)) == [0, 1, 4, 9, 16, 25, 36]


def test_nothing_is_made_ahead_for_a_device_whose_steps_take_every_core():
    made = []
    results = prefetch(made.append, range(5), depth=prefetch_depth(torch.device("cpu")))
    next(results)
    assert made == [0]


def test_an_exception_is_raised_where_its_turn_is():
    results = prefetch(lambda x: 1 // (2 - x), range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_leaving_early_ends_the_thread():
    results = prefetch(lambda x: x, iter(range(10**9)))
    assert next(results) == 0
    results.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]
