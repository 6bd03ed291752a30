"""How much of each feature is there: what training saw against what requests bring."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conversion_retrieval.features.coverage import missing_shares
from conversion_retrieval.features.inputs import QueryArrays
from conversion_retrieval.features.spec import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class MissingShares:
    """The shares of rows without a usable value of one feature; None where there were no rows."""

    feature: str
    training: float | None
    serving: float | None


class Coverage:
    """Counts the requests whose user columns are null, unknown or not finite. Safe to share between threads.

    ``metadata`` is the bundle's ``features.json``, which holds the shares of training and of the served catalogue.
    """

    def __init__(self, spec: FeatureSpec, metadata: Mapping[str, Any]) -> None:
        self._spec = spec
        self._recorded: Mapping[str, Any] = metadata.get("coverage", {})
        self._missing = dict.fromkeys((column.name for column in spec.users.columns), 0.0)
        self._rows = 0
        self._lock = threading.Lock()

    def observe(self, queries: QueryArrays) -> None:
        """Count a batch."""
        shares = missing_shares(self._spec.users, queries.users)
        with self._lock:
            self._rows += len(queries)
            for name, share in shares.items():
                self._missing[name] += (share or 0.0) * len(queries)

    def shares(self) -> list[MissingShares]:
        """User columns by what was observed, item columns by the catalogue that is served."""
        with self._lock:
            rows, missing = self._rows, dict(self._missing)
        users = {name: count / rows if rows else None for name, count in missing.items()}
        items = self._recorded.get("items", {}).get("serve", {})
        return [*self._compared("users", users), *self._compared("items", items)]

    def _compared(self, owner: str, serving: Mapping[str, float | None]) -> list[MissingShares]:
        training = self._recorded.get(owner, {}).get("train", {})
        return [
            MissingShares(feature=f"{owner}.{name}", training=training.get(name), serving=share)
            for name, share in serving.items()
        ]
