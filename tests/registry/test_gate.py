"""The gate's verdicts. Oracle: the table below, written from the rules in docs/gate.md, and recalls set by hand."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from conversion_retrieval.registry.config import GateConfig
from conversion_retrieval.registry.decision import ChampionState, Check, Decision, read_decision, write_decision
from conversion_retrieval.registry.gate import decide
from conversion_retrieval.registry.gate_inputs import DigestPair, GateInputs, IndexRecall
from tests.registry.gate_worlds import CONFIG, HIT, MISS, QUALITIES, inputs_of, ranks, recalled

TOO_LITTLE = "insufficient_data"
EXPECTED = {
    "absent": ("promote", "promote", "promote", TOO_LITTLE, TOO_LITTLE),
    "present": ("promote", "promote", "reject", TOO_LITTLE, TOO_LITTLE),
    "incomparable": ("promote", "promote", "promote", TOO_LITTLE, TOO_LITTLE),
    "corrupt": ("reject",) * 5,
    "unreachable": (TOO_LITTLE,) * 5,
}
CASES = [(s, q, verdict) for s, row in EXPECTED.items() for q, verdict in zip(QUALITIES, row, strict=True)]


def check(decision: Decision, name: str) -> Check:
    return next(c for c in decision.checks if c.name == name)


@pytest.mark.parametrize(("status", "quality", "verdict"), CASES)
def test_verdict_follows_the_table_of_champion_states_and_candidate_qualities(
    status: str, quality: str, verdict: str
) -> None:
    decision = decide(inputs_of(quality, status), CONFIG)
    assert decision.verdict == verdict, decision.reason


@pytest.mark.parametrize("quality", ["better", "same", "worse"])
def test_a_first_champion_needs_explicit_permission(quality: str) -> None:
    decision = decide(inputs_of(quality, "absent", allow_first=False), CONFIG)
    assert decision.verdict == "reject"
    assert "allow_first" in decision.reason


@pytest.mark.parametrize("quality", ["better", "same", "worse"])
def test_a_champion_that_cannot_be_measured_is_replaced_by_explicit_permission_alone(quality: str) -> None:
    decision = decide(inputs_of(quality, "incomparable", allow_first=False), CONFIG)
    assert decision.verdict == TOO_LITTLE
    assert "champion v1 cannot be measured on these features (without clicks)" in decision.reason
    assert "allow_first" in decision.reason


def test_a_corrupt_champion_is_not_an_absent_one_and_the_reason_says_how_to_recover() -> None:
    decision = decide(inputs_of("better", "corrupt", allow_first=True), CONFIG)
    assert decision.verdict == "reject"
    assert "rollback" in decision.reason
    assert "index.faiss is truncated" in decision.reason


def test_recall_and_difference_are_the_hand_made_ones() -> None:
    decision = decide(inputs_of("better", "present"), CONFIG)
    assert check(decision, "recall_floor").value == pytest.approx(0.4)
    assert check(decision, "not_worse_than_champion").value == pytest.approx(0.1)
    assert check(decision, "beats_popularity").value == pytest.approx(0.3)
    assert "0.4000" in decision.reason
    assert "+0.1000 against champion v1" in decision.reason


@pytest.mark.parametrize(("level", "words"), [(0.95, "95%"), (0.975, "97.5%"), (0.999, "99.9%")])
def test_the_reason_tells_the_level_of_its_interval_unrounded(level: float, words: str) -> None:
    config = dataclasses.replace(CONFIG, confidence_level=level, num_resamples=2000)
    decision = decide(inputs_of("better", "present"), config)
    assert f"({words} interval " in decision.reason


@pytest.mark.parametrize("rank", [MISS, float(CONFIG.k), 1e6])
def test_a_conversion_not_retrieved_or_ranked_at_k_or_later_is_a_miss(rank: float) -> None:
    decision = decide(inputs_of("better", "absent", ranks=ranks(np.full(1000, rank))), CONFIG)
    assert check(decision, "recall_floor").value == 0.0


def test_the_last_rank_inside_k_is_a_hit() -> None:
    decision = decide(inputs_of("better", "absent", ranks=ranks(np.full(1000, CONFIG.k - 1.0))), CONFIG)
    assert check(decision, "recall_floor").value == 1.0


def test_a_candidate_below_the_floor_is_rejected() -> None:
    decision = decide(inputs_of("better", "absent"), dataclasses.replace(CONFIG, min_recall=0.41))
    assert decision.verdict == "reject"
    assert "recall_floor" in decision.reason


def test_a_candidate_no_better_than_popularity_is_rejected() -> None:
    decision = decide(inputs_of("better", "absent", ranks=ranks(recalled(0.1))), CONFIG)
    assert decision.verdict == "reject"
    assert check(decision, "beats_popularity").passed is False


def test_a_baseline_that_was_not_evaluated_is_never_beaten() -> None:
    decision = decide(inputs_of("better", "present"), dataclasses.replace(CONFIG, must_beat=("popularity", "item_knn")))
    assert decision.verdict == TOO_LITTLE
    assert check(decision, "beats_item_knn").passed is None


def test_a_present_champion_without_ranks_is_never_passed() -> None:
    decision = decide(inputs_of("better", "present", ranks=ranks(recalled(0.4))), CONFIG)
    assert decision.verdict == TOO_LITTLE


def test_a_difference_too_uncertain_for_the_margin_is_undecided_rather_than_rejected() -> None:
    rng = np.random.default_rng(1)
    candidate, champion = (np.where(rng.random(600) < 0.3, HIT, MISS) for _ in range(2))
    champion[:180], champion[180:] = HIT, MISS
    candidate = rng.permutation(champion)
    decision = decide(inputs_of("same", "present", ranks=ranks(candidate, champion)), CONFIG)
    change = check(decision, "not_worse_than_champion")
    assert change.value == pytest.approx(0.0)
    assert change.low < -CONFIG.max_regression
    assert decision.verdict == TOO_LITTLE


@pytest.mark.parametrize(("num_items", "words"), [(CONFIG.k, "choose a smaller k"), (None, "does not tell")])
def test_lists_as_long_as_the_catalogue_tell_no_model_from_another(num_items: int | None, words: str) -> None:
    """Each holds every item, so any model recalls everything and none is worse than the champion."""
    everything = np.full(1000, HIT)
    config = dataclasses.replace(CONFIG, must_beat=())
    inputs = inputs_of("same", "present", ranks=ranks(everything, everything), num_items=num_items)
    decision = decide(inputs, config)
    assert decision.verdict == TOO_LITTLE
    assert words in decision.reason
    more = dataclasses.replace(inputs, num_items=CONFIG.k + 1)
    assert decide(more, config).verdict == "promote"


def test_index_recall_below_its_limit_rejects() -> None:
    decision = decide(inputs_of("better", "present", index_recall=IndexRecall(value=0.9, n=1000)), CONFIG)
    assert decision.verdict == "reject"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_missing_or_non_finite_index_recall_is_never_a_pass(value: float | None) -> None:
    decision = decide(inputs_of("better", "present", index_recall=IndexRecall(value=value)), CONFIG)
    assert decision.verdict == TOO_LITTLE


@pytest.mark.parametrize("option", ["min_recall", "min_index_recall", "max_regression", "max_slice_regression"])
def test_a_threshold_that_is_no_number_is_never_a_pass_and_writes_strict_json(option: str, tmp_path: Path) -> None:
    """Configurations with NaN are refused when they are loaded; the gate must hold against one made otherwise."""
    config = dataclasses.replace(CONFIG)
    object.__setattr__(config, option, float("nan"))
    decision = decide(sliced("search", 400), config)
    assert decision.verdict in ("reject", TOO_LITTLE)
    assert decide(inputs_of("better", "present"), config).verdict == TOO_LITTLE
    write_decision(tmp_path, decision)
    assert read_decision(tmp_path) == decision


@pytest.mark.parametrize("found", ["x" * 64, ""])
def test_artifacts_of_different_models_are_rejected_whatever_their_numbers(found: str) -> None:
    pair = DigestPair(name="index.model", expected="m" * 64, found=found)
    decision = decide(inputs_of("better", "present", digests=(pair,)), CONFIG)
    assert decision.verdict == "reject"
    assert "index.model" in decision.reason


@pytest.mark.parametrize(("validation", "verdict"), [("invalid", "reject"), ("", TOO_LITTLE), ("perhaps", TOO_LITTLE)])
def test_data_that_is_not_known_to_be_valid_promotes_nothing(validation: str, verdict: str) -> None:
    assert decide(inputs_of("better", "present", validation=validation), CONFIG).verdict == verdict


def sliced(loss_in: str, conversions: int) -> GateInputs:
    """Better overall, but without any hit on one surface of ``conversions`` conversions where the champion has 30%."""
    world = ranks(recalled(0.5), recalled(0.3))
    surface = np.full(len(world), "home_feed")
    surface[:conversions] = loss_in
    candidate = np.where(surface == loss_in, MISS, world.candidate)
    changed = dataclasses.replace(world, candidate=candidate, slices={**world.slices, "surface": surface})
    return inputs_of("better", "present", ranks=changed)


def test_a_better_candidate_that_fails_one_surface_is_rejected_with_that_surface_named() -> None:
    decision = decide(sliced("search", 400), CONFIG)
    assert check(decision, "not_worse_than_champion").passed is True
    assert check(decision, "slice surface=search").value == pytest.approx(-0.3)
    assert decision.verdict == "reject"
    assert "surface=search" in decision.reason


def test_a_slice_with_too_few_conversions_is_named_but_does_not_block() -> None:
    decision = decide(sliced("search", 100), CONFIG)
    assert decision.verdict == "promote"
    assert "surface=search (100)" in check(decision, "guardrail_slices").detail


def test_one_users_conversions_decide_nothing_however_many() -> None:
    """2,000 conversions of 1,000 queries that popularity finds a tenth of: of one user all the same."""
    world = ranks(recalled(0.4), recalled(0.3))
    world = dataclasses.replace(world, users=np.zeros(len(world), np.int64))
    decision = decide(inputs_of("better", "present", ranks=world), CONFIG)
    beats = check(decision, "beats_popularity")
    assert (decision.verdict, beats.passed, beats.low) == (TOO_LITTLE, None, None)
    assert beats.value == pytest.approx(0.3)
    assert "beats_popularity is 0.3 against 0: without an interval" in decision.reason


def test_a_slice_of_one_user_is_named_but_does_not_block() -> None:
    inputs = sliced("search", 250)
    assert decide(inputs, CONFIG).verdict == "reject"
    users = np.where(inputs.ranks.slices["surface"] == "search", -1, inputs.ranks.users)
    decision = decide(dataclasses.replace(inputs, ranks=dataclasses.replace(inputs.ranks, users=users)), CONFIG)
    assert decision.verdict == "promote"
    assert "surface=search (250)" in check(decision, "guardrail_slices").detail


def test_missing_guardrail_slices_are_never_a_pass() -> None:
    world = dataclasses.replace(ranks(recalled(0.4), recalled(0.3)), slices={})
    assert decide(inputs_of("better", "present", ranks=world), CONFIG).verdict == TOO_LITTLE


def test_chance_losses_in_some_of_many_slices_do_not_block_an_equal_candidate() -> None:
    """Fifty slices of equal models: at 5% each, two or three would lose by chance; simultaneous bounds keep it rare."""
    rejected = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        candidate, champion = (np.where(rng.random(10_000) < 0.3, HIT, MISS) for _ in range(2))
        slices = {"surface": np.full(10_000, "all"), "advertiser_size_decile": (np.arange(10_000) % 50).astype(str)}
        world = dataclasses.replace(ranks(candidate, champion), slices=slices)
        decision = decide(inputs_of("same", "present", ranks=world), dataclasses.replace(CONFIG, num_resamples=200))
        rejected += any(c.passed is False for c in decision.checks if c.name.startswith("slice"))
    assert rejected <= 2


def test_without_conversions_no_rank_is_said_to_be_missing() -> None:
    """Ranks are rows by model: without any there are none of a champion that was measured all the same."""
    nothing = dataclasses.replace(ranks(np.empty(0)), compared={})
    decision = decide(inputs_of("better", "present", ranks=nothing), CONFIG)
    for name in ("not_worse_than_champion", "beats_popularity"):
        assert check(decision, name).detail == "no conversions to compare on"


def test_an_empty_test_window_is_too_little_and_writes_strict_json(tmp_path) -> None:
    decision = decide(inputs_of("better", "present", ranks=ranks(np.empty(0), np.empty(0))), CONFIG)
    assert decision.verdict == TOO_LITTLE
    write_decision(tmp_path, decision)
    assert "NaN" not in (tmp_path / "decision.json").read_text()


def test_decision_survives_writing_and_reading(tmp_path) -> None:
    decision = decide(inputs_of("worse", "present"), CONFIG)
    write_decision(tmp_path, decision)
    assert read_decision(tmp_path) == decision
    assert json.loads((tmp_path / "decision.json").read_text())["verdict"] == "reject"


def test_the_same_inputs_give_the_same_decision() -> None:
    assert decide(inputs_of("better", "present"), CONFIG) == decide(inputs_of("better", "present"), CONFIG)


def test_every_promotion_has_only_passed_checks() -> None:
    promoted = [decide(inputs_of(q, s), CONFIG) for s, q, verdict in CASES if verdict == "promote"]
    assert promoted
    assert all(c.passed is True for d in promoted for c in d.checks)


def test_unknown_champion_status_is_never_a_pass() -> None:
    decision = decide(inputs_of("better", "absent", champion=ChampionState(status="odd")), GateConfig())
    assert decision.verdict != "promote"
