"""The population stability index against its formula by hand."""

import math

import pytest

from conversion_retrieval.validation.profile import SMALLEST_SHARE, stability_index


def text(**counts: int) -> dict:
    return {"kind": "text", "counts": counts}


def test_index_is_the_formula_by_hand() -> None:
    by_hand = (0.8 - 0.5) * math.log(0.8 / 0.5) + (0.2 - 0.5) * math.log(0.2 / 0.5)
    assert stability_index(text(a=80, b=20), text(a=5, b=5)) == pytest.approx(by_hand)


def test_value_that_appears_is_compared_with_the_smallest_share() -> None:
    by_hand = (0.5 - 1.0) * math.log(0.5) + (0.5 - SMALLEST_SHARE) * math.log(0.5 / SMALLEST_SHARE)
    assert stability_index(text(a=5, b=5), text(a=10)) == pytest.approx(by_hand)


def test_numbers_merge_into_groups_and_nulls_stay_apart() -> None:
    reference = {"kind": "number", "counts": {f"+{n}": 10 for n in range(40)} | {"null": 400}}
    assert stability_index(reference, reference) == 0
    neighbour = {"kind": "number", "counts": {"+400": 10} | {f"+{n}": 10 for n in range(39)} | {"null": 400}}
    assert stability_index(neighbour, reference) == pytest.approx(0)
    shifted = {"kind": "number", "counts": {"+39": 400, "null": 400}}
    assert stability_index(shifted, reference) > 1
