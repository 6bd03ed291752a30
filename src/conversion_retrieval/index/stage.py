"""The ``build_index`` stage: encode the catalogue, tune an index, check it, and rank the test positives through it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conversion_retrieval.config import PipelineConfig
from conversion_retrieval.contracts import new_artifact, write_json
from conversion_retrieval.errors import UserError
from conversion_retrieval.evaluation.intervals import UserBootstrap, sum_by_user
from conversion_retrieval.evaluation.model_scores import ModelVectors, encode_window, open_inputs
from conversion_retrieval.evaluation.ranking import ItemLists, top_k
from conversion_retrieval.evaluation.tables import rank_table
from conversion_retrieval.evaluation.window import EvaluationWindow
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.spec import FeatureSpec
from conversion_retrieval.index.config import IndexConfig
from conversion_retrieval.index.flat import search_of
from conversion_retrieval.index.parity import GOLDEN_QUERIES, check_index, check_vectors
from conversion_retrieval.index.search import (
    FACTS_FILE,
    INDEX_FILE,
    ITEM_IDS_FILE,
    NOT_FOUND,
    VECTORS_FILE,
    ItemIndex,
    read_index,
)
from conversion_retrieval.index.tune import TunedIndex, latency_ms, search_recall, tune_index
from conversion_retrieval.progress import say
from conversion_retrieval.training.load import LoadedModel, load_model

SEARCH_BLOCK = 4096
CANDIDATE = "candidate"


def build_index(
    *, features_dir: Path, spec_dir: Path, model_dir: Path, index_dir: Path, config: PipelineConfig
) -> float:
    """Build the index to serve from and return its recall@``index.recall_k`` against exact search on test queries.

    Items are encoded as of the start of the test window, so that ranks through this very index leak nothing. Raises
    ``UserError`` for corrupt inputs, an empty catalogue, vectors that are not finite, and a failed parity check.
    """
    inputs = open_inputs(features_dir=features_dir, spec_dir=spec_dir, model_dir=model_dir)
    dataset = FeatureDataset.open(features_dir, FeatureSpec.load(spec_dir))
    if not dataset.num_items:
        raise UserError(f"expected items to index, found an empty catalogue in {features_dir}")
    model, test = load_model(model_dir), EvaluationWindow.of(dataset, "test")
    vectors = encode_window(model, test)
    tuned = tune_index(vectors.items, _tuning_queries(model, dataset, vectors.items, config.index), config.index)
    metadata: dict[str, Any] = {"faiss_version": faiss.__version__}
    with new_artifact(index_dir, kind="index", inputs=inputs, metadata=metadata) as working_dir:
        _write(working_dir, tuned, dataset, vectors)
        facts = _facts(tuned, test, vectors, config.index) | {"model_digest": inputs["model"]}
        write_json(working_dir / FACTS_FILE, facts)
        index = read_index(working_dir)
        _check_parity(index, tuned.chosen.kind, model_dir, test, vectors)
        _write_ranks(working_dir / "ranks.parquet", index, test, vectors, max(config.index.rank_depth, config.gate.k))
    missed = [name for name, kept in tuned.met.items() if not kept]
    say(
        f"build_index: {' '.join(filter(None, (tuned.chosen.factory, tuned.chosen.setting)))}, "
        f"recall {facts['recall']['value']:.4f} of exact" + "".join(f", beyond the {name} limit" for name in missed)
    )
    return float(facts["recall"]["value"])


def ranks_through_index(
    index: ItemIndex, queries: NDArray[np.float32], positives: ItemLists, depth: int
) -> NDArray[np.int32]:
    """0-based rank [P] of each positive in the index's list of ``depth`` items, -1 where it is not in it."""
    ranks = np.full(len(positives.items), NOT_FOUND, np.int32)
    for start in range(0, len(queries), SEARCH_BLOCK):
        end = min(start + SEARCH_BLOCK, len(queries))
        _, rows = index.search(queries[start:end], depth)
        for query in range(start, end):
            where = slice(positives.offsets[query], positives.offsets[query + 1])
            ranks[where] = _positions(rows[query - start], positives[query])
    return ranks


def _positions(rows: NDArray[np.int64], items: NDArray[np.int32]) -> NDArray[np.int64]:
    found = rows[None, :] == items[:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1), NOT_FOUND)


def _tuning_queries(
    model: LoadedModel, dataset: FeatureDataset, items: NDArray[np.float32], config: IndexConfig
) -> NDArray[np.float32]:
    """Vectors of validation queries, drawn with a seed; of items where that window has no queries."""
    rng = np.random.default_rng(config.seed)
    split = dataset.split("validation")
    if not len(split):
        return items[rng.choice(len(items), min(config.tuning_queries, len(items)), replace=False)]
    rows = np.sort(rng.choice(len(split), min(config.tuning_queries, len(split)), replace=False))
    return model.encode_queries(dataset, split, rows)


def _write(directory: Path, tuned: TunedIndex, dataset: FeatureDataset, vectors: ModelVectors) -> None:
    faiss.write_index(tuned.index, str(directory / INDEX_FILE))
    pq.write_table(pa.table({"item_id": dataset.item_ids}), directory / ITEM_IDS_FILE)
    np.save(directory / VECTORS_FILE, vectors.items, allow_pickle=False)


def _facts(tuned: TunedIndex, test: EvaluationWindow, vectors: ModelVectors, config: IndexConfig) -> dict[str, Any]:
    chosen = tuned.chosen
    return {
        "kind": chosen.kind,
        "parameters": {"factory": chosen.factory, "setting": chosen.setting},
        "faiss_version": faiss.__version__,
        "num_items": len(vectors.items),
        "dim": vectors.items.shape[1],
        "performance_snapshot": test.snapshot,
        "recall": _test_recall(tuned.index, test, vectors, config),
        "latency_ms": dict(zip(("p50", "p99"), latency_ms(tuned.index, _probe(vectors), config.recall_k), strict=True)),
        "queries_per_second": chosen.queries_per_second,
        "memory_mb": chosen.memory_mb,
        "target_met": all(tuned.met.values()),
        "met": tuned.met,
        "targets": {
            "recall": config.target_recall,
            "latency": config.max_latency_ms,
            "memory": config.max_memory_mb,
        },
        "trade_off": [asdict(point) for point in tuned.trade_off],
    }


def _probe(vectors: ModelVectors) -> NDArray[np.float32]:
    return vectors.queries if len(vectors.queries) else vectors.items


def _test_recall(index: Any, test: EvaluationWindow, vectors: ModelVectors, config: IndexConfig) -> dict[str, Any]:
    """Recall against exact search on test queries that the tuning did not see, its interval over users."""
    rng = np.random.default_rng(config.seed)
    count = len(vectors.queries)
    rows = np.sort(rng.choice(count, min(config.tuning_queries, count), replace=False))
    queries = vectors.queries[rows] if count else _probe(vectors)[: config.tuning_queries]
    users = test.users[rows] if count else np.arange(len(queries))
    _, truth = top_k(queries, vectors.items, config.recall_k)
    _, found = search_of(index)(queries, truth.shape[1])
    recalls = search_recall(found, truth, queries, vectors.items)[:, None]
    num_users = int(users.max()) + 1
    sums, counts = (sum_by_user(values, users, num_users) for values in (recalls, np.ones_like(recalls)))
    interval = UserBootstrap(num_users=num_users, seed=config.seed).intervals(sums, counts)
    bounds = (interval.value, interval.low, interval.high)
    value, low, high = (float(bound[0]) if np.isfinite(bound[0]) else None for bound in bounds)
    return {"k": config.recall_k, "value": value, "low": low, "high": high, "n": len(queries)}


def _check_parity(index: ItemIndex, kind: str, model_dir: Path, test: EvaluationWindow, vectors: ModelVectors) -> None:
    """The model read back from its directory, and the index read back from its file, against what was indexed."""
    reloaded = load_model(model_dir)
    rows = np.arange(min(GOLDEN_QUERIES, len(test.split)))
    queries = reloaded.encode_queries(test.dataset, test.split, rows)
    check_vectors("query vectors", vectors.queries[rows], queries)
    check_vectors("item vectors", vectors.items, reloaded.encode_items(test.dataset, test.snapshot))
    check_index(index, kind, queries, vectors.items)


def _write_ranks(path: Path, index: ItemIndex, test: EvaluationWindow, vectors: ModelVectors, depth: int) -> None:
    ranks = ranks_through_index(index, vectors.queries, test.positives, depth)
    pq.write_table(rank_table(CANDIDATE, test, {"rank": ranks}), path)
