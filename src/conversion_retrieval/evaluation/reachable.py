"""How near a model comes to the best ranking there is. Only a generated world, whose truth is known, can say that."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conversion_retrieval.contracts import open_artifact
from conversion_retrieval.datasets.truth import TrueWorld, TruthQueries, oracle_ranks
from conversion_retrieval.errors import UserError
from conversion_retrieval.evaluation.crossed_bootstrap import Interval
from conversion_retrieval.evaluation.intervals import Intervals, UserBootstrap, sum_by_user
from conversion_retrieval.evaluation.window import CONVERSION_TASK
from conversion_retrieval.features.dataset import FeatureDataset, Split
from conversion_retrieval.features.spec import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class ReachableRecall:
    """Micro recall@k on the same conversions: a model's, the best ranking's, and the first over the second."""

    k: int
    model: Interval
    best: Interval
    ratio: Interval


def reachable_recalls(
    *,
    ranks: NDArray[np.integer],
    best_ranks: NDArray[np.integer],
    users: NDArray[np.integer],
    ks: Sequence[int],
    num_resamples: int = 1000,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> list[ReachableRecall]:
    """Compare 0-based ranks [P] of the same positives, -1 where not retrieved; users [P] are what is resampled."""
    _, user = np.unique(users, return_inverse=True)
    num_users = int(user.max(initial=-1)) + 1
    bootstrap = UserBootstrap(
        num_users=num_users, num_resamples=num_resamples, confidence_level=confidence_level, seed=seed
    )
    found, best = (sum_by_user(_hits(values, ks), user, num_users) for values in (ranks, best_ranks))
    positives = np.repeat(np.bincount(user, minlength=num_users)[:, None], len(ks), axis=1).astype(np.float64)
    pairs = ((found, positives), (best, positives), (found, best))
    model, reachable, ratio = (bootstrap.intervals(numerators, denominators) for numerators, denominators in pairs)
    return [
        ReachableRecall(k=k, model=_at(model, i), best=_at(reachable, i), ratio=_at(ratio, i)) for i, k in enumerate(ks)
    ]


def compare_with_truth(
    *,
    data_dir: Path | str,
    features_dir: Path | str,
    spec_dir: Path | str,
    evaluation_dir: Path | str,
    kind: str = "evaluation",
    ks: Sequence[int] = (10, 100, 1000),
    model: str = "candidate",
) -> list[ReachableRecall]:
    """Compare an evaluation of the test split of a generated world with the world's own ranking of the same queries.

    ``kind`` says what ``evaluation_dir`` holds: an ``evaluation``, or a ``variant`` of an ablation.

    Raises ``UserError`` where there is no truth beside the data, or the evaluation lacks the model or conversions.
    """
    ranks = conversion_ranks(Path(evaluation_dir), model, kind=kind)
    dataset = FeatureDataset.open(features_dir, FeatureSpec.load(spec_dir))
    best = best_ranks(
        TrueWorld.open(data_dir), dataset, dataset.split("test"), ranks["query"].to_numpy(), ranks["item"].to_numpy()
    )
    return reachable_recalls(ranks=ranks["rank"].to_numpy(), best_ranks=best, users=ranks["user"].to_numpy(), ks=ks)


def conversion_ranks(evaluation_dir: Path, model: str, *, kind: str = "evaluation") -> pa.Table:
    """An evaluation's conversions sorted by query and item: query, item, user and the model's rank."""
    open_artifact(evaluation_dir, kind=kind)
    path = evaluation_dir / "ranks.parquet"
    table = pq.read_table(path, columns=["model", "query", "item", "user", "task", "rank"])
    chosen = table.filter(pc.and_(pc.equal(table["model"], model), pc.equal(table["task"], CONVERSION_TASK)))
    if not len(chosen):
        raise UserError(f"expected conversions ranked by {model!r} in {path}, found none")
    return chosen.sort_by([("query", "ascending"), ("item", "ascending")])


def best_ranks(
    world: TrueWorld, dataset: FeatureDataset, split: Split, query: NDArray[np.int64], item: NDArray[np.int32]
) -> NDArray[np.int32]:
    """The best ranking's 0-based rank [P] of (query, item) pairs that are sorted by query."""
    rows, counts = np.unique(query, return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return oracle_ranks(world, truth_queries(dataset, split, rows), offsets, item)


def truth_queries(dataset: FeatureDataset, split: Split, rows: NDArray[np.int64]) -> TruthQueries:
    """The split's queries at ``rows`` in the terms of the generated world."""
    surfaces = np.array([None, *dataset.spec.surfaces], dtype=object)[split.surface[rows]]
    subject, embedding = split.context_item[rows], split.context_embedding[rows]
    context = np.zeros((len(rows), split.context_embeddings.shape[1]))
    context[embedding >= 0] = split.context_embeddings[embedding[embedding >= 0]]
    return TruthQueries(
        user_ids=dataset.user_ids.take(pa.array(split.user[rows])),
        times=split.time[rows],
        surfaces=surfaces.tolist(),
        context_item_ids=dataset.item_ids.take(pa.array(subject, mask=subject < 0)),
        context_embeddings=context,
    )


def _hits(ranks: NDArray[np.integer], ks: Sequence[int]) -> NDArray[np.float64]:
    return np.stack([(ranks >= 0) & (ranks < k) for k in ks], axis=1).astype(np.float64)


def _at(intervals: Intervals, column: int) -> Interval:
    value, low, high = (float(values[column]) for values in (intervals.value, intervals.low, intervals.high))
    return Interval(value=value, low=low, high=high)
