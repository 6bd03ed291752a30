"""The named variants of the ablation: what each switches, relative to the configuration given."""

import copy
import json
from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Any, Final

from conversion_retrieval.config import PipelineConfig, changed_values, config_values, parse_config
from conversion_retrieval.errors import UserError
from conversion_retrieval.progress import say

DEFAULT: Final = "default"
_SEQUENTIAL: Final = {"model.query_tower.layout": "sequential", "model.item_tower.layout": "sequential"}

VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        DEFAULT: {},
        # The source's first generation: two heads, sequential towers, no advertiser-level loss.
        "2023_multi_head_sequential": {**_SEQUENTIAL, "model.heads": "multi_head", "losses.advertiser_weight": 0.0},
        "multi_head": {"model.heads": "multi_head"},
        "sequential": _SEQUENTIAL,
        "no_advertiser_loss": {"losses.advertiser_weight": 0.0},
        "no_duration_weights": {"labels.click_duration_weighting": False},
        "no_hard_negatives": {"losses.hard_negatives": False},
        "no_engagement_task": {"losses.task_weights": {"conversion": 1.0, "engagement": 0.0}},
        # A memory is a history too, and the only one that some configurations have.
        "no_history": {"model.history.encoder": "none", "model.memory_dim": 0},
        "no_recent_steps": {"training.recent_epochs": 0},
        # Full softmax needs no logQ: the correction is switched off beside its own sampled reference.
        "sampled_softmax": {"losses.softmax": "sampled"},
        "sampled_softmax_no_logq": {"losses.softmax": "sampled", "losses.logq_correction": False},
        "engagement_weight_0.1": {"losses.task_weights": {"conversion": 1.0, "engagement": 0.1}},
        "engagement_weight_1.0": {"losses.task_weights": {"conversion": 1.0, "engagement": 1.0}},
        "engagement_weight_3.0": {"losses.task_weights": {"conversion": 1.0, "engagement": 3.0}},
        "advertiser_weight_0.5": {"losses.advertiser_weight": 0.5},
    }
)
# What a variant is compared with where that is not the default: without the correction alone, not without both.
REFERENCES: Final[Mapping[str, str]] = MappingProxyType({"sampled_softmax_no_logq": "sampled_softmax"})


def reference_of(name: str, measured: Container[str]) -> str:
    """The variant that ``name`` is compared with, the default where that one was not measured."""
    reference = REFERENCES.get(name, DEFAULT)
    return reference if reference in measured else DEFAULT


def split_names(text: str) -> tuple[str, ...]:
    """Comma-separated names; none in an empty text."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def select_variants(names: tuple[str, ...]) -> tuple[str, ...]:
    """The chosen variants, the default always among them and first; ``UserError`` for an unknown name."""
    if unknown := [name for name in names if name not in VARIANTS]:
        raise UserError(f"expected variants out of {', '.join(VARIANTS)}, found {unknown[0]!r}")
    return tuple(name for name in VARIANTS if name == DEFAULT or not names or name in names)


def changing_variants(base: PipelineConfig, names: tuple[str, ...]) -> tuple[str, ...]:
    """``select_variants`` without those whose switches stand in ``base`` already, which are said.

    Trained again, the default would be compared with itself and read as a technique without any effect.
    """
    chosen, default = select_variants(names), variant_config(base, DEFAULT, seed=0)
    same = [name for name in chosen if name != DEFAULT and variant_config(base, name, seed=0) == default]
    if same:
        say(f"ablation: left out, as this configuration is that already: {', '.join(same)}")
    return tuple(name for name in chosen if name not in same)


def plan_variants(base: PipelineConfig, names: tuple[str, ...], *, num_seeds: int) -> list[dict[str, str]]:
    """What a fan-out runs: ``{"variant", "seed", "config_json"}``, all text, for ``changing_variants`` with each seed.

    ``config_json`` holds only what differs from the defaults: the items of a fan-out are kept in the cluster's
    database, whose columns are short.
    """
    chosen = changing_variants(base, names)
    return [
        {
            "variant": name,
            "seed": str(seed),
            "config_json": json.dumps(changed_values(variant_config(base, name, seed=seed))),
        }
        for seed in range(num_seeds)
        for name in chosen
    ]


def variant_config(base: PipelineConfig, name: str, *, seed: int) -> PipelineConfig:
    """``base`` with the variant's switches, and ``seed`` for initialisation and sampling."""
    values = copy.deepcopy(config_values(base))
    switches = {**VARIANTS[name], "model.seed": seed, "training.seed": seed, "evaluation.baselines": ()}
    for path, value in switches.items():
        *sections, key = path.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[key] = value
    return parse_config(values, where=f"variant {name}")
