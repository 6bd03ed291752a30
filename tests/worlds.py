"""Small synthetic data sets for fixtures."""

from pathlib import Path

from conversion_retrieval.datasets.config import SyntheticConfig
from conversion_retrieval.datasets.synthetic import generate

TINY = SyntheticConfig(
    num_users=300,
    num_items=200,
    num_advertisers=20,
    num_days=40,
    num_categories=6,
    num_price_tiers=3,
    num_segments=4,
    taste_dim=4,
    embedding_dim=8,
    requests_per_user_day=0.25,
    users_per_part=150,
    seed=7,
)

# The settings of a run through every stage in seconds; its model has hardly learnt.
QUICK_RUN = (
    "training.max_steps=4",
    "training.batch_size=256",
    "model.embedding_dim=8",
    "model.feature_dim=4",
    "model.history.encoder=recency_mean",
    "evaluation.num_resamples=50",
    "evaluation.baselines=[popularity]",
    "gate.num_resamples=50",
    "gate.min_queries=1",
    "gate.must_beat=[]",
    "gate.guardrail_slices=[]",
    "split.max_evaluation_queries=200",
)


def tiny_world(path: Path, config: SyntheticConfig = TINY) -> Path:
    """Generate a data set of a few hundred users and items over 40 days into ``path``; returns ``path``."""
    generate(path, config)
    return path
