"""What the network must know about its inputs to have a shape: vocabulary sizes and widths, nothing of the data."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from conversion_retrieval.schema import EVENT_TYPES

if TYPE_CHECKING:
    from conversion_retrieval.features.spec import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class EntitySizes:
    """Columns of an entity table (``features.inputs.EntityTable``).

    ``num_ids`` counts the rows of the id embedding with the unknown id 0, and is 0 where ids are not features;
    ``categorical`` holds each column's vocabulary size with the unknown code 0; ``embeddings`` each column's length.
    """

    num_ids: int = 0
    categorical: tuple[int, ...] = ()
    numeric: int = 0
    embeddings: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class InputSizes:
    """Everything both towers see. ``surfaces`` and ``actions`` count the code 0 (unknown, padding) too."""

    items: EntitySizes
    users: EntitySizes
    item_performance: int
    user_aggregates: int
    context_embedding: int
    surfaces: int
    actions: int

    @classmethod
    def of(cls, spec: "FeatureSpec") -> "InputSizes":
        """The sizes that a feature spec implies."""
        return cls(
            items=EntitySizes(
                num_ids=spec.item_ids.rows,
                categorical=spec.items.categorical_sizes,
                numeric=spec.items.numeric_dim,
                embeddings=spec.items.embedding_dims,
            ),
            users=EntitySizes(
                categorical=spec.users.categorical_sizes,
                numeric=spec.users.numeric_dim,
                embeddings=spec.users.embedding_dims,
            ),
            item_performance=len(spec.item_performance),
            user_aggregates=len(spec.user_aggregates),
            context_embedding=spec.context_embedding_dim,
            surfaces=spec.num_surfaces,
            actions=len(EVENT_TYPES) + 1,
        )
