"""What the gate judges: the conversions of the test window with every rank, and the digests that artifacts recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from conversion_retrieval.registry.decision import ChampionState

CANDIDATE: Final = "candidate"
CHAMPION: Final = "champion"


@dataclass(frozen=True, kw_only=True)
class ConversionRanks:
    """The test window's conversions, one row each, and where every model ranked them.

    ``candidate`` [n] are 0-based ranks through the shipped index, ``compared`` the exact ranks by the champion and the
    baselines, by name; -1 is not retrieved, NaN not measured. ``slices`` maps a slice's name to each row's value.
    """

    users: NDArray[np.int64]
    queries: NDArray[np.int64]
    candidate: NDArray[np.float64]
    compared: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    slices: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of conversions."""
        return len(self.users)


@dataclass(frozen=True, kw_only=True)
class IndexRecall:
    """Recall of the index against exact search over ``n`` queries; None where it was not measured."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, kw_only=True)
class DigestPair:
    """A digest that one artifact recorded (``found``) of another (``expected``)."""

    name: str
    expected: str
    found: str


@dataclass(frozen=True, kw_only=True)
class GateInputs:
    """All that a decision rests on; ``validation`` is the data report's verdict, empty if there was none.

    ``num_items`` are in the index, None where it does not tell.
    """

    ranks: ConversionRanks
    index_recall: IndexRecall
    num_items: int | None
    champion: ChampionState
    validation: str
    digests: tuple[DigestPair, ...]
    candidate_digests: Mapping[str, str] = field(default_factory=dict)
    allow_first: bool = False
