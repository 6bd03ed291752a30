"""The champion pointer and the history behind it.

``champion.json`` is the head of the history: entry number ``generation`` in full. ``history/<generation>.json`` is a
copy of each head, written once after its swap and, should that writer have died, before the next one. So nothing is
lost between two writes, and nothing is ever rewritten.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from conversion_retrieval.errors import CorruptArtifactError

CHAMPION_KEY: Final = "champion.json"
HISTORY_PREFIX: Final = "history"
Action = Literal["promote", "rollback"]


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The served version; ``generation`` numbers the swaps from 1, ``previous`` is the version served before."""

    version: str
    digest: str
    generation: int
    promoted_time: str
    previous: str = ""
    action: Action = "promote"
    reason: str = ""

    @property
    def history_key(self) -> str:
        """Where this entry's copy is kept."""
        return f"{HISTORY_PREFIX}/{self.generation:08d}.json"


def encode_champion(champion: Champion) -> bytes:
    """The pointer's bytes."""
    return (json.dumps(asdict(champion), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def decode_champion(content: bytes, *, where: str) -> Champion:
    """Parse a pointer strictly; ``CorruptArtifactError`` for anything that ``encode_champion`` would not write."""
    try:
        champion = Champion(**json.loads(content))
    except (ValueError, TypeError) as error:
        raise CorruptArtifactError(f"expected a champion pointer at {where}, found: {error}") from None
    texts = (champion.version, champion.digest, champion.promoted_time, champion.previous, champion.reason)
    if not all(isinstance(text, str) for text in texts) or not champion.version or not champion.digest:
        raise CorruptArtifactError(f"expected a version and a digest at {where}, found {champion!r}")
    if not isinstance(champion.generation, int) or isinstance(champion.generation, bool) or champion.generation < 1:
        raise CorruptArtifactError(f"expected a positive generation at {where}, found {champion.generation!r}")
    return champion


def utc_now() -> str:
    """The current time, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
