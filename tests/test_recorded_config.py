"""Configurations of other releases. Oracle: the rule applied by hand to options that come and go."""

import copy
import dataclasses

import pytest

from conversion_retrieval import __version__
from conversion_retrieval.config import PipelineConfig, config_values, parse_config
from conversion_retrieval.errors import CorruptArtifactError
from conversion_retrieval.options import BEFORE
from conversion_retrieval.recorded_config import complete, recorded_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rank: int = 8
    bias: bool = dataclasses.field(default=True, metadata={BEFORE: False})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    width: int = 64
    inner: Inner = dataclasses.field(default_factory=Inner)
    scale: float = dataclasses.field(default=2.0, metadata={BEFORE: 1.0})


ALL = ("width", "inner", "scale")


def without(values: dict, name: str) -> dict:
    """A copy of ``values`` without the option ``section.[section.]name``."""
    values = copy.deepcopy(values)
    *sections, last = name.split(".")
    inner = values
    for section in sections:
        inner = inner[section]
    del inner[last]
    return values


def test_an_absent_option_means_what_was_done_before_it_existed():
    assert complete({"width": 3, "inner": {"rank": 5}}, Outer, ALL, prefix="outer") == {
        "width": 3,
        "inner": {"rank": 5, "bias": False},
        "scale": 1.0,
    }


def test_a_recorded_value_is_never_replaced():
    recorded = {"width": 3, "inner": {"rank": 5, "bias": True}, "scale": 9.0}
    assert complete(recorded, Outer, ALL, prefix="outer") == recorded


@pytest.mark.parametrize("name", ["width", "inner.rank", "inner"])
def test_an_absent_option_without_a_meaning_of_its_own_is_refused(name):
    recorded = {"width": 3, "inner": {"rank": 5, "bias": True}, "scale": 9.0}
    with pytest.raises(CorruptArtifactError, match=rf"outer\.{name} is missing"):
        complete(without(recorded, name), Outer, ALL, prefix="outer")


def test_a_whole_configuration_comes_back():
    config = parse_config({"model": {"embedding_dim": 32, "history": {"layers": 2}}, "gate": {"k": 50}})
    assert recorded_config(config_values(config), release="0.0.9", where="config.json") == config


def test_options_that_no_answer_depends_on_may_be_absent():
    values = config_values(PipelineConfig())
    for name in ("gate.min_index_recall", "training", "losses", "features.num_partitions"):
        values = without(values, name)
    assert recorded_config(values, release="0.0.9", where="config.json") == PipelineConfig()


def test_a_model_from_before_memories_were_fitted_has_one_of_histories():
    values = without(without(config_values(PipelineConfig()), "model.memory_fit"), "model.memory_ridge")
    assert recorded_config(values, release="0.0.9", where="config.json").model.memory_fit == "svd"


@pytest.mark.parametrize(
    "name", ["model.popularity_bias", "model.query_tower.residual", "features.aggregate_windows_days"]
)
def test_an_absent_served_option_is_refused_in_a_line_with_both_releases_and_what_to_do(name):
    values = without(config_values(PipelineConfig()), name)
    with pytest.raises(CorruptArtifactError) as refusal:
        recorded_config(values, release="0.0.9", where="model/config.json")
    message = str(refusal.value)
    assert "\n" not in message
    for told in (name, "0.0.9", __version__, "model/config.json", "train and promote"):
        assert told in message


def test_an_option_of_a_newer_release_is_refused_with_that_release():
    values = config_values(PipelineConfig())
    values["model"]["from_the_future"] = 1
    with pytest.raises(CorruptArtifactError, match=r"found one of release 9\.0\.0: .*from_the_future"):
        recorded_config(values, release="9.0.0", where="config.json")
