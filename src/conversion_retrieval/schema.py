"""The canonical tables: the one definition of every column that importers write and all stages read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

EVENT_TYPES: Final = ("impression", "click", "save", "add_to_cart", "checkout")
ENGAGEMENTS: Final = ("click", "save")
CONVERSIONS: Final = ("add_to_cart", "checkout")
KNOWN_EVENTS: Final = (*ENGAGEMENTS, *CONVERSIONS)
"""What users did: what is new to them, baselines and slices go by it, whichever events a model's histories hold."""
DEFAULT_SURFACES: Final = ("home_feed", "related_items", "search")

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")


def is_key(kind: pa.DataType) -> bool:
    """Whether a column of this type can identify an entity: string or integer."""
    return bool(is_text(kind) or pa.types.is_integer(kind))


def is_number(kind: pa.DataType) -> bool:
    """Integer or floating point."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def is_text(kind: pa.DataType) -> bool:
    """String of any layout, possibly dictionary encoded."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_embedding(kind: pa.DataType) -> bool:
    """A list of floats, of fixed or variable declared length."""
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(nested and pa.types.is_floating(kind.value_type))


@dataclass(frozen=True, kw_only=True)
class Column:
    """One canonical column.

    ``kind`` is the type that importers write; ``accepts`` decides which types a user's file may hold instead.
    """

    name: str
    kind: pa.DataType
    accepts: Callable[[pa.DataType], bool]
    required: bool = True
    nullable: bool = False
    description: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A canonical table; ``extra_columns`` tells whether columns beyond the defined ones are features or an error.

    ``reserved_columns`` are made from other columns later, and no user's may be called so.
    """

    name: str
    key: str
    columns: tuple[Column, ...]
    required: bool = True
    extra_columns: bool = False
    reserved_columns: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Column:
        """The column called ``name``; ``KeyError`` if there is none."""
        return next((c for c in self.columns if c.name == name), None) or _unknown(self.name, name)


def _unknown(table: str, column: str) -> Column:
    raise KeyError(f"{table} has no canonical column {column!r}")


EVENTS: Final = Table(
    name="events",
    key="event_id",
    columns=(
        Column(name="event_id", kind=pa.string(), accepts=is_key, description="unique; duplicates are removed by it"),
        Column(name="user_id", kind=pa.string(), accepts=is_key, description="who"),
        Column(name="item_id", kind=pa.string(), accepts=is_key, description="which item"),
        Column(name="event_type", kind=pa.string(), accepts=is_text, description="one of: " + ", ".join(EVENT_TYPES)),
        Column(
            name="event_time", kind=TIMESTAMP, accepts=pa.types.is_timestamp, description="when it happened, in UTC"
        ),
        Column(
            name="surface",
            kind=pa.string(),
            accepts=is_text,
            required=False,
            nullable=True,
            description="where the request happened; null where unknown, as for offsite conversions",
        ),
        Column(
            name="click_duration_seconds",
            kind=pa.float64(),
            accepts=is_number,
            required=False,
            nullable=True,
            description="time until the user returned from a click; clicks only",
        ),
        Column(
            name="context_item_id",
            kind=pa.string(),
            accepts=is_key,
            required=False,
            nullable=True,
            description="the subject item of a related-items request",
        ),
        Column(
            name="context_embedding",
            kind=pa.list_(pa.float32()),
            accepts=is_embedding,
            required=False,
            nullable=True,
            description="embedding of the request's context, such as the search query",
        ),
        Column(
            name="reported_time",
            kind=TIMESTAMP,
            accepts=pa.types.is_timestamp,
            required=False,
            nullable=True,
            description="when a conversion became known; null means at event_time",
        ),
        Column(
            name="value",
            kind=pa.float64(),
            accepts=is_number,
            required=False,
            nullable=True,
            description="order value of a conversion",
        ),
    ),
)

ITEMS: Final = Table(
    name="items",
    key="item_id",
    columns=(
        Column(name="item_id", kind=pa.string(), accepts=is_key, description="unique"),
        Column(name="advertiser_id", kind=pa.string(), accepts=is_key, description="who sells the item"),
    ),
    extra_columns=True,
    reserved_columns=("advertiser", "first_seen"),
)

USERS: Final = Table(
    name="users",
    key="user_id",
    columns=(Column(name="user_id", kind=pa.string(), accepts=is_key, description="unique"),),
    required=False,
    extra_columns=True,
)

TABLES: Final = (EVENTS, ITEMS, USERS)
