"""The whole stage on a small world. Oracle: ranks and metrics computed again from vectors with a sort."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from conversion_retrieval.contracts import new_artifact, open_artifact
from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.evaluation import stage
from conversion_retrieval.evaluation.baselines import Baseline
from conversion_retrieval.evaluation.model_scores import encode_window
from conversion_retrieval.evaluation.rankers import BackedOffRanker, popularity_order
from conversion_retrieval.evaluation.results import Results
from conversion_retrieval.evaluation.stage import evaluate
from conversion_retrieval.evaluation.window import EvaluationWindow
from conversion_retrieval.features.build import build_features
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.spec import FeatureSpec
from conversion_retrieval.index.stage import build_index
from conversion_retrieval.registry.decision import ChampionState
from conversion_retrieval.training.load import LoadedModel, load_model


@pytest.fixture(scope="module")
def evaluated(world, tmp_path_factory):
    directory = tmp_path_factory.mktemp("evaluated")
    recall = evaluate(**world.inputs, evaluation_dir=directory / "evaluation", page_path=directory / "page.html")
    return directory, recall


@pytest.fixture(scope="module")
def ranks(evaluated):
    return pd.read_parquet(evaluated[0] / "evaluation" / "ranks.parquet")


@pytest.fixture(scope="module")
def dataset(world):
    return FeatureDataset.open(world.features_dir, FeatureSpec.load(world.spec_dir))


def of(ranks, model, task=0):
    return ranks[(ranks["model"] == model) & (ranks["task"] == task)]


def test_candidate_ranks_are_positions_in_a_full_sort_of_the_models_scores(world, ranks, dataset):
    split, model = dataset.split("test"), load_model(world.model_dir)
    queries = model.encode_queries(dataset, split, np.arange(len(split)))
    items = model.encode_items(dataset, int(split.snapshot[np.argmin(split.time)]))
    position = np.argsort(np.argsort(-(queries @ items.T), axis=1, kind="stable"), axis=1)
    found = ranks[ranks["model"] == "candidate"]
    np.testing.assert_array_equal(found["query"], split.positives.query)
    np.testing.assert_array_equal(found["rank"], position[split.positives.query, split.positives.item])


def test_every_model_ranks_every_positive_of_the_split_once(ranks, dataset, world):
    models = {"candidate", "engagement_only", *world.config.evaluation.baselines}
    assert set(ranks["model"]) == models
    assert (ranks.groupby("model").size() == len(dataset.split("test").positives)).all()
    assert ranks["rank"].between(0, dataset.num_items - 1).all()


def test_metrics_follow_from_the_ranks(evaluated, ranks, world):
    results, k = Results.read(evaluated[0] / "evaluation"), world.config.gate.k
    for model in results.models():
        found = results.find(f"conversion/recall@{k}", model=model)
        rows = of(ranks, model)
        assert found.value == pytest.approx((rows["rank"] < k).mean())
        assert (found.n_positives, found.n_queries) == (len(rows), rows["query"].nunique())
        assert found.low <= found.value <= found.high
    assert evaluated[1] == results.find(f"conversion/recall@{k}").value


def test_new_items_are_ranked_without_what_the_user_already_has(evaluated, ranks, world):
    results, k = Results.read(evaluated[0] / "evaluation"), world.config.gate.k
    rows = of(ranks, "own_history")
    new = rows[rows["new_to_user"]]
    assert (new["rank_without_seen"] <= new["rank"]).all()
    assert (rows.loc[~rows["new_to_user"], "rank_without_seen"] == -1).all()
    name = f"conversion/recall@{k}"
    shortened = results.find(name, model="own_history", slice_="new_to_user=true")
    full = results.find(name, model="own_history", slice_="new_to_user_in_full_list=true")
    assert shortened.value == pytest.approx((new["rank_without_seen"] < k).mean())
    assert full.value == pytest.approx((new["rank"] < k).mean())
    assert shortened.value > full.value


def test_a_baseline_ranks_each_list_at_the_setting_tuned_for_it(world, tmp_path, monkeypatch, dataset):
    """Full lists by row, those without what users had from the last row up."""
    rows = np.arange(dataset.num_items, dtype=np.float32)
    full, new = BackedOffRanker(parameters={}, base=-rows), BackedOffRanker(parameters={}, base=rows)
    monkeypatch.setattr(stage, "fit_baseline", lambda *_: Baseline(full=full, new=new))
    config = replace(world.config, evaluation=replace(world.config.evaluation, baselines=("popularity",)))
    out = {"evaluation_dir": tmp_path / "evaluation", "page_path": tmp_path / "page.html"}
    evaluate(**world.inputs | {"config": config}, **out)
    found = of(pd.read_parquet(tmp_path / "evaluation" / "ranks.parquet"), "popularity")
    np.testing.assert_array_equal(found["rank"], found["item"])
    seen = EvaluationWindow.of(dataset, "test").seen
    had_later = [(seen[query] > item).sum() for query, item in zip(found["query"], found["item"], strict=True)]
    expected = dataset.num_items - 1 - found["item"] - had_later
    np.testing.assert_array_equal(found["rank_without_seen"], np.where(found["new_to_user"], expected, -1))


def test_a_slices_conversions_add_up_to_all_of_them(evaluated):
    results = Results.read(evaluated[0] / "evaluation")
    whole = results.find("conversion/recall@20")
    families = dict(results.slices("conversion/recall@20"))
    expected = {"surface", "advertiser_size_decile", "item_popularity_decile", "history_length"}
    expected |= {"item_status", "user_status"}
    assert expected < set(families)
    for family in expected:
        parts = [results.find("conversion/recall@20", slice_=name) for name in families[family]]
        assert sum(part.n_positives for part in parts) == whole.n_positives
        hits = sum(part.value * part.n_positives for part in parts)
        assert hits == pytest.approx(whole.value * whole.n_positives)


def test_checkouts_and_carts_are_measured_apart(evaluated, ranks):
    results = Results.read(evaluated[0] / "evaluation")
    counts = of(ranks, "candidate")["event_type"].value_counts()
    assert results.find("checkout/recall@20").n_positives == counts[4]
    assert results.find("add_to_cart/recall@20").n_positives == counts[3]
    assert results.find("engagement/ndcg@20").n_positives == len(of(ranks, "candidate", task=1))


def test_overlap_counts_conversions_that_the_engagement_list_misses(evaluated, ranks):
    results = Results.read(evaluated[0] / "evaluation")
    candidate, engagement = (of(ranks, m)["rank"].to_numpy() for m in ("candidate", "engagement_only"))
    found = results.find("conversion/only_recalled@20", slice_="against=engagement_only")
    assert found.value == pytest.approx(((candidate < 20) & (engagement >= 20)).mean())


def test_coverage_of_popularity_is_one_list(evaluated, dataset):
    results = Results.read(evaluated[0] / "evaluation")
    assert results.find("catalogue/coverage@20", model="popularity").value == pytest.approx(20 / dataset.num_items)
    assert results.find("catalogue/coverage@1000", model="own_history").value == 1.0


def test_the_artifact_records_what_it_was_made_from(evaluated, world):
    manifest = open_artifact(evaluated[0] / "evaluation", kind="evaluation")
    for kind in ("features", "spec", "model"):
        directory = getattr(world, f"{kind}_dir")
        assert manifest.inputs[kind] == open_artifact(directory, kind=kind).digest
    assert manifest.metadata["champion"]["status"] == "absent"
    assert manifest.metadata["confidence_level"] == world.config.evaluation.confidence_level
    assert set(manifest.metadata["baselines"]) == set(world.config.evaluation.baselines)
    slices = pd.read_parquet(evaluated[0] / "evaluation" / "slices.parquet")
    assert {"query", "item", "event_type", "surface", "advertiser_size_decile"} <= set(slices.columns)
    assert "<html" in (evaluated[0] / "page.html").read_text().lower()


def test_every_conversion_finds_its_slices_by_its_key(evaluated, ranks):
    key = ["query", "item", "event_type"]
    slices = pd.read_parquet(evaluated[0] / "evaluation" / "slices.parquet")
    found = of(ranks, "candidate").merge(slices, on=key, how="left")
    assert len(found) == len(of(ranks, "candidate"))
    assert found["surface"].notna().all()
    assert set(slices["item_status"]) <= {"known", "cold"}


def champion_bundle(world):
    """Stands in for the registry: the candidate itself as the champion's bundle."""

    def fetch(registry_uri, directory):
        directory.mkdir(parents=True)
        (directory / "model").symlink_to(world.model_dir)
        return ChampionState(status="present", version="v1", digest="abc")

    return fetch


def fast(world):
    config = world.config
    return world.inputs | {
        "config": stage.replace(config, evaluation=stage.replace(config.evaluation, baselines=("popularity",)))
    }


def test_the_champion_is_scored_again_on_this_window(world, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "fetch_champion", champion_bundle(world))
    evaluate(**fast(world), evaluation_dir=tmp_path / "evaluation", page_path=tmp_path / "p.html", registry_uri="x")
    ranks = pd.read_parquet(tmp_path / "evaluation" / "ranks.parquet")
    np.testing.assert_array_equal(of(ranks, "champion")["rank"], of(ranks, "candidate")["rank"])
    difference = Results.read(tmp_path / "evaluation").find(
        "conversion/recall_difference@20", slice_="against=champion"
    )
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


@pytest.mark.parametrize("status", ["corrupt", "unreachable", "absent"])
def test_a_champion_that_cannot_be_read_is_recorded_and_stops_nothing(world, tmp_path, monkeypatch, status):
    state = ChampionState(status=status, reason="because")
    monkeypatch.setattr(stage, "fetch_champion", lambda *_: state)
    evaluate(**fast(world), evaluation_dir=tmp_path / "evaluation", page_path=tmp_path / "p.html", registry_uri="x")
    manifest = json.loads((tmp_path / "evaluation" / "manifest.json").read_text())
    assert manifest["metadata"]["champion"] == {"status": status, "version": "", "digest": "", "reason": "because"}
    assert "champion" not in set(pd.read_parquet(tmp_path / "evaluation" / "ranks.parquet")["model"])


def test_a_bundle_whose_model_does_not_load_makes_the_champion_corrupt(world, tmp_path, monkeypatch):
    def fetch(registry_uri, directory):
        (directory / "model").mkdir(parents=True)
        return ChampionState(status="present", version="v1", digest="abc")

    monkeypatch.setattr(stage, "fetch_champion", fetch)
    evaluate(**fast(world), evaluation_dir=tmp_path / "evaluation", page_path=tmp_path / "p.html", registry_uri="x")
    champion = json.loads((tmp_path / "evaluation" / "manifest.json").read_text())["metadata"]["champion"]
    assert (champion["status"], champion["version"]) == ("corrupt", "v1")
    assert champion["reason"]


@pytest.mark.parametrize(
    ("features", "missing"),
    [
        ({"aggregate_windows_days": [2.0, 10.0]}, "without item_performance.impression_count_1d and"),
        ({"history_events": ["click"]}, None),
    ],
)
def test_a_champion_is_measured_with_all_that_it_was_trained_with_or_not_at_all(
    world, tmp_path, monkeypatch, features, missing
):
    """Its histories are there whatever those of the candidate hold; its figures only if they were built."""
    other = replace(world.config.features, **{name: tuple(values) for name, values in features.items()})
    config = replace(world.config, features=other)
    built = {"features_dir": tmp_path / "features", "spec_dir": tmp_path / "spec"}
    build_features(snapshot_dir=world.snapshot_dir, **built, config=config)
    monkeypatch.setattr(stage, "fetch_champion", champion_bundle(world))
    evaluation = stage.Evaluation(
        test=EvaluationWindow.of(
            FeatureDataset.open(built["features_dir"], FeatureSpec.load(built["spec_dir"])), "test"
        ),
        validation=None,
        config=world.config.evaluation,
    )
    state = evaluation.add_champion("x", built["features_dir"])
    if missing:
        assert state.status == "incomparable"
        assert missing in state.reason
        assert not evaluation.ranks
    else:
        same = FeatureDataset.open(world.features_dir, FeatureSpec.load(world.spec_dir)).split("test")
        vectors = encode_window(load_model(world.model_dir), EvaluationWindow.of(dataset_of(world), "test"))
        expected = np.argsort(np.argsort(-(vectors.queries @ vectors.items.T), axis=1, kind="stable"), axis=1)
        ranks = evaluation.ranks["champion"].full
        np.testing.assert_array_equal(ranks, expected[same.positives.query, same.positives.item])


def test_figures_of_events_that_a_log_no_longer_holds_are_zero_rather_than_missing(world):
    dataset = dataset_of(world)
    built = dataset.metadata["item_performance"]
    assert any(name.startswith("save_") for name in built)
    without = [name for name in built if not name.startswith("save_")]
    assert not replace(dataset, metadata={**dataset.metadata, "item_performance": without}).missing_figures
    fewer = [name for name in built if name != "save_count_1d"]
    found = replace(dataset, metadata={**dataset.metadata, "item_performance": fewer}).missing_figures
    assert found == ["item_performance.save_count_1d"]


def dataset_of(world):
    return FeatureDataset.open(world.features_dir, FeatureSpec.load(world.spec_dir))


def test_baselines_slices_and_what_is_new_go_by_what_users_did_whatever_the_histories_hold(world, tmp_path):
    """Oracle: the same window of features whose histories hold everything."""
    config = replace(world.config, features=replace(world.config.features, history_events=()))
    built = {"features_dir": tmp_path / "features", "spec_dir": tmp_path / "spec"}
    build_features(snapshot_dir=world.snapshot_dir, **built, config=config)
    blind = FeatureDataset.open(built["features_dir"], FeatureSpec.load(built["spec_dir"]))
    assert not len(blind.events.item)
    windows = [EvaluationWindow.of(data, "test") for data in (blind, dataset_of(world))]
    found, expected = windows
    np.testing.assert_array_equal(found.split.positives.new_to_user, expected.split.positives.new_to_user)
    np.testing.assert_array_equal(found.seen.items, expected.seen.items)
    assert found.seen.items.size
    for name in expected.slices:
        np.testing.assert_array_equal(found.slices[name], expected.slices[name], err_msg=name)
    np.testing.assert_array_equal(popularity_order(found.log, found.start), popularity_order(expected.log, found.start))


def test_vectors_that_are_not_finite_stop_the_run_and_leave_nothing(world, tmp_path, monkeypatch):
    encode = LoadedModel.encode_items

    def broken(self, *args, **kwargs):
        vectors = encode(self, *args, **kwargs)
        vectors[7] = np.nan
        return vectors

    monkeypatch.setattr(LoadedModel, "encode_items", broken)
    with pytest.raises(UserError, match="finite item vectors from the model, found 1 of"):
        evaluate(**fast(world), evaluation_dir=tmp_path / "evaluation", page_path=tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_vectors_whose_scores_would_overflow_stop_the_run_and_leave_nothing(world, tmp_path, monkeypatch):
    for name in ("encode_items", "encode_queries"):
        encode = getattr(LoadedModel, name)
        monkeypatch.setattr(
            LoadedModel, name, lambda *args, encode=encode, **kw: encode(*args, **kw) * np.float32(1e21)
        )
    with pytest.raises(UserError, match="expected scores that float32 can hold, found query vectors"):
        evaluate(**fast(world), evaluation_dir=tmp_path / "evaluation", page_path=tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_a_corrupt_input_is_refused_by_name(world, tmp_path):
    with pytest.raises(CorruptArtifactError, match="expected a model artifact"):
        evaluate(**world.inputs | {"model_dir": tmp_path}, evaluation_dir=tmp_path / "e", page_path=tmp_path / "p.html")


def test_a_spec_of_another_run_is_refused(world, tmp_path):
    other = tmp_path / "spec"
    with new_artifact(other, kind="spec") as directory:
        for name in ("feature_spec.yaml", "vocabularies.parquet"):
            (directory / name).write_bytes((world.spec_dir / name).read_bytes())
        (directory / "feature_spec.yaml").open("a").write("# edited\n")
    with pytest.raises(UserError, match="pass the outputs of one run"):
        evaluate(**world.inputs | {"spec_dir": other}, evaluation_dir=tmp_path / "e", page_path=tmp_path / "p.html")


def test_a_window_without_queries_is_measured_as_nothing(world, tmp_path):
    config = stage.replace(world.config, split=stage.replace(world.config.split, as_of="2027-01-01"))
    config = stage.replace(config, split=stage.replace(config.split, train_days=400.0))
    features_dir, spec_dir = tmp_path / "features", tmp_path / "spec"
    build_features(snapshot_dir=world.snapshot_dir, features_dir=features_dir, spec_dir=spec_dir, config=config)
    inputs = world.inputs | {"features_dir": features_dir}
    recall = evaluate(**inputs, evaluation_dir=tmp_path / "evaluation", page_path=tmp_path / "page.html")
    assert recall == 0.0
    assert Results.read(tmp_path / "evaluation").measurements == ()
    assert len(pd.read_parquet(tmp_path / "evaluation" / "ranks.parquet")) == 0
    assert np.isfinite(build_index(**inputs, index_dir=tmp_path / "index"))
    assert len(pd.read_parquet(tmp_path / "index" / "ranks.parquet")) == 0
