"""The whole stage on a small world. Oracle: exact ranks from the model's vectors."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from conversion_retrieval.contracts import open_artifact
from conversion_retrieval.errors import UserError
from conversion_retrieval.evaluation.ranking import ItemLists, exact_ranks
from conversion_retrieval.evaluation.window import EvaluationWindow
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.spec import FeatureSpec
from conversion_retrieval.index import stage
from conversion_retrieval.index.search import ItemIndex
from conversion_retrieval.index.stage import build_index, ranks_through_index
from conversion_retrieval.training.load import LoadedModel, load_model
from tests.evaluation.conftest import world

__all__ = ["world"]


@pytest.fixture(scope="module")
def built(world, tmp_path_factory):
    directory = tmp_path_factory.mktemp("built") / "index"
    return directory, build_index(**world.inputs, index_dir=directory)


def test_ranks_through_an_exact_index_are_the_exact_ranks(built, world):
    dataset = FeatureDataset.open(world.features_dir, FeatureSpec.load(world.spec_dir))
    split, model = dataset.split("test"), load_model(world.model_dir)
    queries = model.encode_queries(dataset, split, np.arange(len(split)))
    items = model.encode_items(dataset, int(split.snapshot[np.argmin(split.time)]))
    found = pd.read_parquet(built[0] / "ranks.parquet")
    expected = exact_ranks(queries, items, split.positives.offsets, split.positives.item)
    assert (found["model"] == "candidate").all()
    np.testing.assert_array_equal(found[["query", "item"]], np.stack([split.positives.query, split.positives.item], 1))
    np.testing.assert_array_equal(found["rank"], expected)


def test_the_index_holds_the_catalogue_in_order_and_says_what_it_is(built, world):
    index, manifest = ItemIndex.open(built[0]), open_artifact(built[0], kind="index")
    dataset = FeatureDataset.open(world.features_dir, FeatureSpec.load(world.spec_dir))
    assert index.item_ids.equals(dataset.item_ids)
    assert index.facts["kind"] == "exact"
    assert index.facts["recall"] == {"k": 100, "value": 1.0, "low": 1.0, "high": 1.0, "n": index.facts["recall"]["n"]}
    assert built[1] == 1.0
    assert (
        index.facts["model_digest"] == manifest.inputs["model"] == open_artifact(world.model_dir, kind="model").digest
    )
    assert manifest.metadata["faiss_version"] == index.facts["faiss_version"]
    vectors = np.load(built[0] / "item_embeddings.npy", allow_pickle=False)
    np.testing.assert_allclose(index.index.reconstruct(5), vectors[5])


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivf_pq"])
def test_an_approximate_index_ships_with_its_trade_off_and_parameters(world, tmp_path, kind):
    config = replace(world.config, index=replace(world.config.index, kind=kind, recall_k=20, target_recall=0.9))
    recall = build_index(**world.inputs | {"config": config}, index_dir=tmp_path / "index")
    facts = json.loads((tmp_path / "index" / "index.json").read_text())
    assert recall == facts["recall"]["value"] >= 0.85
    assert facts["parameters"]["setting"] in {point["setting"] for point in facts["trade_off"]}
    assert facts["recall"]["low"] <= recall <= facts["recall"]["high"]
    assert facts["target_met"]


def test_an_index_measured_on_one_users_queries_has_a_recall_without_an_interval(world, tmp_path, monkeypatch):
    monkeypatch.setattr(EvaluationWindow, "users", property(lambda self: np.zeros(len(self.split), np.int64)))
    build_index(**world.inputs, index_dir=tmp_path / "index")
    recall = ItemIndex.open(tmp_path / "index").facts["recall"]
    assert (recall["value"], recall["low"], recall["high"]) == (1.0, None, None)


def test_a_list_that_lacks_a_positive_ranks_it_as_not_retrieved(built):
    index = ItemIndex.open(built[0])
    vectors = np.load(built[0] / "item_embeddings.npy", allow_pickle=False)
    _, rows = index.search(vectors[:2], 5)
    absent = next(row for row in range(len(index)) if row not in rows[0])
    positives = ItemLists(offsets=np.array([0, 2, 3]), items=np.array([rows[0, 3], absent, rows[1, 0]], np.int32))
    assert ranks_through_index(index, vectors[:2], positives, 5).tolist() == [3, -1, 0]


def test_a_model_that_reads_back_differently_stops_the_run_and_leaves_no_index(world, tmp_path, monkeypatch):
    encode, calls = LoadedModel.encode_items, []

    def drifting(self, *args, **kwargs):
        calls.append(self)
        return encode(self, *args, **kwargs) * (1.0 if len(calls) == 1 else 1.01)

    monkeypatch.setattr(LoadedModel, "encode_items", drifting)
    with pytest.raises(UserError, match="parity: expected item vectors"):
        build_index(**world.inputs, index_dir=tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_an_index_written_wrongly_stops_the_run(world, tmp_path, monkeypatch):
    build = stage.tune_index
    monkeypatch.setattr(stage, "tune_index", lambda items, *rest: build(np.roll(items, 1, axis=0), *rest))
    with pytest.raises(UserError, match="parity: expected index and model to agree"):
        build_index(**world.inputs, index_dir=tmp_path / "index")
    assert list(tmp_path.iterdir()) == []
