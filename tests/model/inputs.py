"""Small random inputs for model tests."""

import numpy as np
import torch

from conversion_retrieval.features.inputs import EntityTable, QueryArrays
from conversion_retrieval.model.inputs import EntityInputs, QueryInputs, item_inputs
from conversion_retrieval.model.sizes import EntitySizes, InputSizes

NUM_ITEMS = 12
SIZES = InputSizes(
    items=EntitySizes(num_ids=NUM_ITEMS + 1, categorical=(4, 3), numeric=2, embeddings={"visual": 5}),
    users=EntitySizes(categorical=(3,), numeric=1, embeddings={"taste": 2}),
    item_performance=3,
    user_aggregates=2,
    context_embedding=4,
    surfaces=3,
    actions=6,
)


def entity_table(sizes: EntitySizes, count: int, rng: np.random.Generator) -> EntityTable:
    categorical = [rng.integers(0, size, count) for size in sizes.categorical]
    return EntityTable(
        categorical=np.stack(categorical, axis=1).astype(np.int32),
        numeric=rng.normal(size=(count, sizes.numeric)).astype(np.float32),
        embeddings={name: rng.normal(size=(count, d)).astype(np.float32) for name, d in sizes.embeddings.items()},
        id_code=np.arange(1, count + 1),
    )


def catalogue(seed: int = 0) -> EntityInputs:
    rng = np.random.default_rng(seed)
    return item_inputs(entity_table(SIZES.items, NUM_ITEMS, rng), torch.device("cpu"))


def performance(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(NUM_ITEMS, 3)).astype(np.float32))


def query_arrays(batch: int = 4, length: int = 5, *, padding: int = 0, seed: int = 0) -> QueryArrays:
    """``length`` events a query (none for the first), after ``padding`` more columns of padding."""
    rng = np.random.default_rng(seed)

    def history(values: np.ndarray, fill: float) -> np.ndarray:
        values = values.copy()
        values[0] = fill
        return np.pad(values, ((0, 0), (padding, 0)), constant_values=fill)

    return QueryArrays(
        surface=rng.integers(0, 3, batch),
        context_item=rng.integers(-1, NUM_ITEMS, batch),
        context_embedding=rng.normal(size=(batch, 4)).astype(np.float32),
        users=entity_table(SIZES.users, batch, rng),
        user_aggregates=rng.normal(size=(batch, 2)).astype(np.float32),
        history_item=history(rng.integers(-1, NUM_ITEMS, (batch, length)), -1),
        history_action=history(rng.integers(1, 6, (batch, length)), 0),
        history_surface=history(rng.integers(0, 3, (batch, length)), 0),
        history_age_days=history(np.sort(rng.uniform(0, 40, (batch, length)))[:, ::-1].astype(np.float32), 0),
    )


def queries(arrays: QueryArrays | None = None) -> QueryInputs:
    return QueryInputs.of(arrays or query_arrays(), NUM_ITEMS, torch.device("cpu"))
