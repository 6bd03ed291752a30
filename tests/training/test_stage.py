import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion_retrieval.contracts import open_artifact, read_manifest, write_manifest
from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.spec import FeatureSpec
from conversion_retrieval.model.inputs import QueryInputs
from conversion_retrieval.training.interruption import Interrupted
from conversion_retrieval.training.load import load_model, load_weights
from conversion_retrieval.training.recent import recent_trainer
from conversion_retrieval.training.stage import train
from conversion_retrieval.training.validation import Validator
from tests.training.runs import built_config

# Towers that learn in two epochs may not count whole otherwise, and would take no recent steps.
CONFIG = built_config(tower_shares=[1.0])


@pytest.fixture(scope="module")
def trained(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two epochs, with checkpoints and logs beside it."""
    directory = tmp_path_factory.mktemp("trained")
    train(
        **built,
        model_dir=directory / "model",
        config=CONFIG,
        checkpoint_dir=directory / "checkpoints",
        log_dir=directory / "logs",
    )
    return directory


def test_the_artifact_holds_what_the_contract_lists(trained, built):
    manifest = open_artifact(trained / "model", kind="model")
    assert {name.partition("/")[0] for name in manifest.files} == {
        "weights.safetensors",
        "config.json",
        "spec",
        "training_curve.parquet",
        "metrics.json",
    }
    assert manifest.inputs == {
        "features": read_manifest(built["features_dir"], kind="features").digest,
        "spec": read_manifest(built["spec_dir"], kind="spec").digest,
    }
    curve = pq.read_table(trained / "model" / "training_curve.parquet").to_pandas()
    assert {"train", "validation", "recent"} == set(curve["split"])
    assert list((trained / "logs").glob("events.out.tfevents.*"))
    assert list((trained / "logs" / "recent").glob("events.out.tfevents.*"))


def test_returned_recall_is_the_best_of_the_curve(trained):
    metrics = json.loads((trained / "model" / "metrics.json").read_text())
    curve = pq.read_table(trained / "model" / "training_curve.parquet").to_pandas()
    values = curve[(curve["split"] == "validation") & (curve["metric"] == metrics["metric"])]["value"]
    assert metrics["best_value"] == values.max() > 0
    assert metrics["tower_share"] == 1.0


def test_a_finished_run_started_again_trains_no_further(trained, built, tmp_path):
    before = sorted((trained / "checkpoints").rglob("*"))
    train(**built, model_dir=tmp_path / "model", config=CONFIG, checkpoint_dir=trained / "checkpoints")
    assert sorted((trained / "checkpoints").rglob("*")) == before
    weights = [d / "model" / "weights.safetensors" for d in (trained, tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    first, again = (json.loads((d / "model" / "metrics.json").read_text()) for d in (trained, tmp_path))
    assert first["queries_per_second"] > 0 == again["queries_per_second"]
    assert again["recent"]["steps"] == first["recent"]["steps"]


def test_the_figures_of_the_recent_part_tell_its_queries_in_all_epochs(trained, built):
    recent = json.loads((trained / "model" / "metrics.json").read_text())["recent"]
    rows = pq.read_metadata(built["features_dir"] / "recent" / "queries.parquet").num_rows
    assert recent["epochs"] == pytest.approx(CONFIG.training.recent_epochs)
    assert 0 < recent["queries"] / recent["epochs"] <= rows


@pytest.mark.parametrize("untrained", ["conversion", "engagement"])
def test_without_positives_to_train_one_of_the_heads_all_tasks_share_one(untrained, built, tmp_path, capsys):
    """Oracle: the heads of the model; one that nothing trains would be served, or measured as engagement-only."""
    config = built_config(model={"heads": "multi_head"}, max_steps=2)
    losses = dataclasses.replace(config.losses, task_weights={"conversion": 1.0, "engagement": 1.0, untrained: 0.0})
    train(**built, model_dir=tmp_path / "model", config=dataclasses.replace(config, losses=losses))
    assert f"no {untrained} positives to train a head of their own: model.heads is unified" in capsys.readouterr().err
    model = load_model(tmp_path / "model")
    assert model.config.model.heads == "unified"
    assert list(model.model.query_tower.heads) == ["unified"]


def test_sigterm_between_the_parts_ends_the_run_and_the_next_goes_on(trained, built, tmp_path, monkeypatch):
    def stopped(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return recent_trainer(*args, **kwargs)

    arguments = {**built, "config": CONFIG, "checkpoint_dir": tmp_path / "checkpoints"}
    monkeypatch.setattr("conversion_retrieval.training.stage.recent_trainer", stopped)
    with pytest.raises(Interrupted):
        train(**arguments, model_dir=tmp_path / "stopped")
    monkeypatch.undo()
    assert not (tmp_path / "stopped").exists()
    train(**arguments, model_dir=tmp_path / "model")
    weights = [d / "model" / "weights.safetensors" for d in (trained, tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_run_whose_towers_count_a_part_writes_the_share_and_resumes_to_the_same(built, tmp_path, capsys, monkeypatch):
    measure, measured = Validator.measure, set()

    def observed(self, model, *arguments, **named):
        found = measure(self, model, *arguments, **named)
        measured.add((float(model.tower_share), found[self.metric]))
        return found

    monkeypatch.setattr(Validator, "measure", observed)
    config = built_config(tower_shares=[0.5, 0.5], model={"memory_dim": 4})
    arguments = {**built, "config": config, "checkpoint_dir": tmp_path / "checkpoints"}
    values = [train(**arguments, model_dir=tmp_path / name) for name in ("first", "again")]
    # Before training and after it, then after it alone: a checkpoint has the first fit.
    assert capsys.readouterr().err.count("memory: a map of rank") == 3
    weights = [load_file(str(tmp_path / name / "weights.safetensors")) for name in ("first", "again")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert weights[0]["tower_share"] == 0.5
    metrics = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert metrics["share_values"] == {"0.5": values[0]}
    assert values[0] == values[1]
    # On a few positives both may be the same number: what counts is with which share each was found.
    assert {(0.5, values[0]), (1.0, metrics["best_value"])} <= measured
    assert (metrics["tower_share"], metrics["recent"]["steps"]) == (0.5, 0)


def test_features_of_another_release_are_refused_before_training(built, tmp_path, capsys):
    features_dir = tmp_path / "features"
    shutil.copytree(built["features_dir"], features_dir)
    shutil.rmtree(features_dir / "recent")
    write_manifest(features_dir, kind="features")
    with pytest.raises(UserError, match=r"expected the split 'recent' .* build the features again"):
        train(features_dir=features_dir, spec_dir=built["spec_dir"], model_dir=tmp_path / "model", config=CONFIG)
    assert "training on" not in capsys.readouterr().err


def test_a_training_goes_on_when_checkpoints_are_to_come_more_often(trained, built, tmp_path, capsys):
    """Oracle: the weights of the run that was never asked."""
    often = dataclasses.replace(
        CONFIG.training, checkpoint_every_steps=7, checkpoint_every_minutes=1, keep_checkpoints=5
    )
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    config = dataclasses.replace(CONFIG, training=often)
    train(**built, model_dir=tmp_path / "model", config=config, checkpoint_dir=tmp_path / "checkpoints")
    assert "resuming from" in capsys.readouterr().err
    weights = [d / "model" / "weights.safetensors" for d in (trained, tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_checkpoints_of_another_configuration_are_refused(trained, built, tmp_path):
    with pytest.raises(UserError, match="give another checkpoint directory"):
        train(
            **built,
            model_dir=tmp_path / "model",
            config=built_config(learning_rate=0.5),
            checkpoint_dir=trained / "checkpoints",
        )


def test_loading_twice_gives_the_same_vectors_whatever_the_blocks(trained, built):
    dataset = FeatureDataset.open(built["features_dir"], FeatureSpec.load(trained / "model" / "spec"))
    split = dataset.split("test")
    rows = np.arange(len(split))
    one, other = load_model(trained / "model"), load_model(trained / "model")
    vectors = one.encode_queries(dataset, split, rows)
    assert vectors.shape == (len(split), one.embedding_dim)
    np.testing.assert_array_equal(vectors, other.encode_queries(dataset, split, rows))
    in_pieces = np.concatenate([other.encode_queries(dataset, split, rows[i : i + 7]) for i in range(0, len(rows), 7)])
    np.testing.assert_allclose(vectors, in_pieces, atol=1e-5)
    items = one.encode_items(dataset, 0)
    assert items.shape == (dataset.num_items, one.embedding_dim)
    np.testing.assert_array_equal(items, other.encode_items(dataset, 0))


def test_vectors_are_those_of_the_model_in_memory(trained, built):
    loaded = load_model(trained / "model")
    dataset = FeatureDataset.open(built["features_dir"], loaded.spec)
    arrays = dataset.query_arrays(dataset.split("test"), np.arange(5))
    catalogue = loaded.catalogue(dataset)
    inputs = QueryInputs.of(arrays, dataset.num_items, torch.device("cpu"))
    expected = loaded.model.encode_queries(inputs, catalogue.history, catalogue.items.id_code).detach().numpy()
    np.testing.assert_array_equal(loaded.encode_queries(dataset, dataset.split("test"), np.arange(5)), expected)


def test_cold_items_differ_by_their_content_though_their_ids_are_unknown(trained, built):
    loaded = load_model(trained / "model")
    dataset = FeatureDataset.open(built["features_dir"], loaded.spec)
    vectors = loaded.encode_items(dataset, -1)
    cold = np.flatnonzero(dataset.items.id_code == 0)
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors[cold].round(5), axis=0)) > len(cold) // 2


def test_weights_of_another_shape_are_refused_in_one_line(trained, tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    for path in (p for p in (trained / "model").rglob("*") if p.is_file() and p.name != "manifest.json"):
        target = directory / path.relative_to(trained / "model")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes().replace(b'"embedding_dim": 16', b'"embedding_dim": 32'))
    write_manifest(directory, kind="model")
    with pytest.raises(CorruptArtifactError, match="expected weights of the configured model at") as caught:
        load_model(directory)
    assert str(caught.value).count("size mismatch") == 1


def test_weights_of_a_release_without_a_tower_share_count_the_towers_whole(trained, tmp_path):
    model = load_model(trained / "model").model
    model.tower_share.fill_(0.5)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "tower_share"}
    save_file(weights, tmp_path / "weights.safetensors")
    load_weights(model, tmp_path / "weights.safetensors")
    assert model.tower_share.item() == 1.0


def test_of_missing_tensors_only_the_first_is_named(trained, tmp_path):
    model = load_model(trained / "model").model
    save_file({}, tmp_path / "weights.safetensors")
    first, second, *_ = (name for name in model.state_dict() if name != "tower_share")
    with pytest.raises(CorruptArtifactError, match=f'found: Missing key.* "{first}"$') as caught:
        load_weights(model, tmp_path / "weights.safetensors")
    assert second not in str(caught.value)


def test_a_model_of_a_newer_schema_is_refused_by_version(trained, tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    manifest = json.loads((trained / "model" / "manifest.json").read_text()) | {"schema_version": 99}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptArtifactError, match="expected model schema version 1, found 99"):
        load_model(directory)
