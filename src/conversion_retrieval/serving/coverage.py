"""How much of each feature is there: what training saw against what requests bring."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conversion_retrieval.features.coverage import missing_shares, query_missing_shares
from conversion_retrieval.features.inputs import QueryArrays
from conversion_retrieval.features.spec import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class MissingShares:
    """The shares of rows without a usable value of one feature; None where there were no rows."""

    feature: str
    training: float | None
    serving: float | None


class Coverage:
    """Counts the requests that lack user columns or parts of their context. Safe to share between threads.

    ``metadata`` is the bundle's ``features.json``, which holds the shares of training and of the served catalogue.
    """

    def __init__(self, spec: FeatureSpec, metadata: Mapping[str, Any]) -> None:
        self._spec = spec
        self._recorded: Mapping[str, Any] = metadata.get("coverage", {})
        self._missing: Counter[tuple[str, str]] = Counter()
        self._rows = 0
        self._lock = threading.Lock()

    def observe(self, queries: QueryArrays) -> None:
        """Count a batch."""
        shares = {
            "users": missing_shares(self._spec.users, queries.users),
            "queries": query_missing_shares(queries),
        }
        with self._lock:
            self._rows += len(queries)
            for owner, found in shares.items():
                for name, share in found.items():
                    self._missing[owner, name] += round((share or 0.0) * len(queries))

    def shares(self) -> list[MissingShares]:
        """User columns and context by what was observed, item columns by the catalogue that is served."""
        with self._lock:
            rows, missing = self._rows, Counter(self._missing)
        observed = {
            "users": [column.name for column in self._spec.users.columns],
            "queries": list(self._recorded.get("queries", {}).get("train", {})),
        }
        shares = {
            owner: {name: missing[owner, name] / rows if rows else None for name in names}
            for owner, names in observed.items()
        }
        shares["items"] = self._recorded.get("items", {}).get("serve", {})
        return [found for owner, own in shares.items() for found in self._compared(owner, own)]

    def _compared(self, owner: str, serving: Mapping[str, float | None]) -> list[MissingShares]:
        training = self._recorded.get(owner, {}).get("train", {})
        return [
            MissingShares(feature=f"{owner}.{name}", training=training.get(name), serving=share)
            for name, share in serving.items()
        ]
