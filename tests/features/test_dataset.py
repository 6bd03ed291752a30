"""Windows of the flat event arrays against slices."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from conversion_retrieval.features.dataset import windows_before
from tests.training.separable import separable_world


@given(
    size=st.integers(0, 12),
    length=st.integers(0, 6),
    ends=st.lists(st.integers(0, 12), max_size=8),
)
def test_a_window_is_the_slice_that_ends_there(size, length, ends):
    """Every value that exists is where the slice, aligned right, has it."""
    values = np.arange(100, 100 + size, dtype=np.int32)
    end = np.minimum(np.array(ends, np.int64), size)
    found = windows_before(values, end, length)
    assert found.shape == (len(end), length)
    assert found.dtype == values.dtype
    for row, stop in zip(found, end, strict=True):
        expected = values[max(stop - length, 0) : stop]
        assert row[length - len(expected) :].tolist() == expected.tolist()


def test_unknown_users_have_no_history_wherever_it_is_said_to_end():
    world = separable_world(num_users=5)
    found = world.history_arrays(np.array([-1]), np.array([10**6]), np.array([0]), 4)
    assert found["history_item"].tolist() == [[-1] * 4]
    assert not found["history_action"].any()


def test_a_history_without_length_is_empty():
    world = separable_world(num_users=5)
    found = world.history_arrays(np.array([0, 1]), world.events.offsets[1:3], np.array([0, 0]), 0)
    assert all(values.shape == (2, 0) for values in found.values())


def test_a_window_is_a_copy():
    values = np.arange(5)
    windows_before(values, np.array([5]), 3)[:] = 0
    assert values.tolist() == [0, 1, 2, 3, 4]
