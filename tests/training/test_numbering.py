import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion_retrieval.training.numbering import Numbering

NUM_ITEMS = 9
LISTS = st.lists(st.lists(st.integers(-1, NUM_ITEMS - 1), max_size=12), max_size=4)


@given(batches=LISTS, shape=st.sampled_from([(-1,), (1, -1)]))
def test_batch_after_batch_the_distinct_known_items_are_numbered_by_where_they_stand(batches, shape):
    numbering = Numbering(num_items=NUM_ITEMS)
    for batch in batches:
        items = np.array(batch, np.int32).reshape(shape)
        rows = numbering.distinct(items)
        assert rows.tolist() == sorted(set(batch) - {-1})
        numbering.assign(rows)
        expected = [rows.tolist().index(item) if item >= 0 else -1 for item in batch]
        assert numbering.of(items).reshape(-1).tolist() == expected


@pytest.mark.parametrize("items", [([],), ([-1, -1],), ([], [])])
def test_nothing_known_is_no_item(items):
    assert not len(Numbering(num_items=NUM_ITEMS).distinct(*(np.array(part, np.int64) for part in items)))
