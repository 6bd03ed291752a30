"""Configurations that train in a second."""

from typing import Any

from conversion_retrieval.config import PipelineConfig, parse_config

TOWER = {"hidden_sizes": [32, 16, 16]}


def small_config(**sections: dict[str, Any]) -> PipelineConfig:
    """Defaults cut to the size of ``separable_world``; ``sections`` are merged in key by key."""
    values: dict[str, dict[str, Any]] = {
        "training": {
            "batch_size": 128,
            "max_epochs": 12,
            "warmup_steps": 5,
            "learning_rate": 1e-2,
            "precision": "fp32",
            "device": "cpu",
            "early_stopping_metric": "conversion/recall@10",
        },
        "losses": {"uniform_negatives": 64},
        "model": {
            "embedding_dim": 16,
            "feature_dim": 4,
            "item_id_dropout": 0.0,
            "query_tower": TOWER,
            "item_tower": TOWER,
        },
    }
    for name, changes in sections.items():
        values.setdefault(name, {}).update(changes)
    return parse_config(values)


def built_config(*, model: dict[str, Any] | None = None, **training: Any) -> PipelineConfig:
    """What the features of ``conftest.built`` are built with, and a short training on them."""
    return small_config(
        training={"max_epochs": 2, "batch_size": 256, **training},
        model=model or {},
        split={"validation_days": 6, "test_days": 6},
        features={"history_length": 16},
    )
