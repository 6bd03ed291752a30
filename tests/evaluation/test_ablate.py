"""The ablation on one machine: all variants from one command, and only what is missing when it is run again."""

import json
import shutil

import pandas as pd
import pytest

from conversion_retrieval.config import load_config
from conversion_retrieval.errors import UserError
from conversion_retrieval.evaluation.ablation import ablate
from conversion_retrieval.features.spec import SPEC_FILE, FeatureSpec
from conversion_retrieval.training import stage
from tests.worlds import QUICK_RUN, tiny_world


def test_an_ablation_compares_the_variants_and_a_repeated_one_trains_only_what_is_missing(tmp_path, monkeypatch):
    data_uri, output_dir = str(tiny_world(tmp_path / "data")), tmp_path / "ablation"
    settings = [*QUICK_RUN, "losses.advertiser_weight=0.0"]
    config = load_config(None, settings)
    page_path = ablate(data_uri, output_dir, config=config, num_seeds=1, variants=("no_history", "no_advertiser_loss"))
    assert "</html>" in page_path.read_text()
    table = (output_dir / "ablation" / "ablation.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:5]] == ["| default", "| no_history", ""]

    trained = []
    train = stage.train

    def recorded(**arguments):
        trained.append(arguments["config"].model.history.encoder)
        return train(**arguments)

    monkeypatch.setattr(stage, "train", recorded)
    shutil.rmtree(output_dir / "variants" / "no_history-seed0")
    # Where features are computed does not make it another ablation.
    elsewhere = load_config(None, [*settings, "features.dask_address=tcp://nowhere:8786"])
    ablate(data_uri, output_dir, config=elsewhere, num_seeds=1, variants=("no_history",))
    assert trained == ["none"]
    assert (output_dir / "ablation" / "ablation.md").read_text() == table

    # Side by side, in processes that know nothing of the patch, they give what they gave one after the other.
    shutil.rmtree(output_dir / "variants")
    ablate(data_uri, output_dir, config=config, num_seeds=1, variants=("no_history",), num_processes=2)
    assert trained == ["none"]
    assert (output_dir / "ablation" / "ablation.md").read_text() == table
    assert "training on" in (output_dir / "logs" / "no_history-seed0.log").read_text()

    other = load_config(None, [*settings, "training.batch_size=128"])
    with pytest.raises(UserError, match=r"another: training\.batch_size was 256 and is 128; choose a new --output"):
        ablate(data_uri, output_dir, config=other, num_seeds=1)
    with pytest.raises(UserError, match=rf"expected an ablation of elsewhere in .*, found one of {data_uri}"):
        ablate("elsewhere", output_dir, config=config, num_seeds=1)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_output_that_can_be_no_directory_is_one_line(tmp_path, name):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=r"expected a directory to write to at .*file") as caught:
        ablate("data", tmp_path / name, config=load_config(), num_seeds=1)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_directory_of_other_files_is_left_as_it_is(tmp_path):
    (tmp_path / "ablation.html").write_text("mine")
    with pytest.raises(UserError, match=r"expected nothing or an ablation in .*, found other files"):
        ablate("data", tmp_path, config=load_config(), num_seeds=1)
    assert [path.name for path in tmp_path.iterdir()] == ["ablation.html"]


def test_missing_parents_of_an_output_are_made(tmp_path):
    with pytest.raises(UserError, match="expected valid data"):
        ablate(str(tmp_path / "none"), tmp_path / "a" / "b", config=load_config(), num_seeds=1)
    assert (tmp_path / "a" / "b" / "request.json").exists()


def test_data_that_fails_its_checks_is_refused_with_the_report(tmp_path):
    data_dir = tiny_world(tmp_path / "data")
    (data_dir / "items.parquet").unlink()
    with pytest.raises(UserError, match=r"expected valid data at .*validation\.html"):
        ablate(str(data_dir), tmp_path / "ablation", config=load_config(), num_seeds=1)
    assert json.loads((tmp_path / "ablation" / "request.json").read_text())["data_uri"] == str(data_dir)


def test_data_without_conversions_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "train", lambda **_: pytest.fail("trained"))
    data_dir = tiny_world(tmp_path / "data")
    for path in (data_dir / "events").glob("*.parquet"):
        events = pd.read_parquet(path)
        events[~events["event_type"].isin(["add_to_cart", "checkout"])].to_parquet(path, index=False)
    with pytest.raises(UserError, match=r"expected conversions in the test window.*found none among \d+ positives"):
        ablate(str(data_dir), tmp_path / "ablation", config=load_config(None, QUICK_RUN), num_seeds=1)


def test_a_feature_spec_that_was_edited_since_makes_it_another_ablation(tmp_path):
    (tmp_path / "spec").mkdir()
    FeatureSpec(history_length=3).save(tmp_path / "spec")
    config = load_config(None, [f"features.spec_path={tmp_path / 'spec'}"])

    def run():
        ablate(str(tmp_path / "none"), tmp_path / "ablation", config=config, num_seeds=1)

    for _ in range(2):
        with pytest.raises(UserError, match="expected valid data"):
            run()
    FeatureSpec(history_length=4).save(tmp_path / "spec")
    with pytest.raises(UserError, match=r"expected the feature spec .* begun with at .*spec, found it edited since"):
        run()
    (tmp_path / "spec" / SPEC_FILE).write_text("history_lenght: 3")
    with pytest.raises(UserError, match="did you mean 'history_length'"):
        run()
