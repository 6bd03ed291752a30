"""Loading the champion's bundle, and loading the next one beside it."""

from dataclasses import dataclass, field

import numpy as np

from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.registry.pointer import Champion
from conversion_retrieval.registry.registry import Registry
from conversion_retrieval.serving.bundle_cache import BundleCache
from conversion_retrieval.serving.requests import Request, inline_events
from conversion_retrieval.serving.retriever import Retriever


@dataclass
class _Broken:
    """A champion that cannot be read, and how often it was asked for since."""

    champion: Champion
    error: CorruptArtifactError | None = None
    calls: int = 0

    def is_due(self) -> bool:
        """Count a call; whether it is one to try again at."""
        self.calls += 1
        return self.calls > 1 and self.calls.bit_count() == 1


@dataclass
class ChampionLoader:
    """Opens bundles from copies on this machine, which stay as long as their retriever is served."""

    registry: Registry
    cache: BundleCache = field(default_factory=BundleCache)
    _broken: "_Broken | None" = None

    def load(self) -> Retriever:
        """The champion, after it has answered a query; ``UserError`` where there is none, or it cannot be read."""
        champion = self.registry.champion()
        if champion is None:
            raise UserError(
                f"expected a champion in {self.registry.uri}, found none: promote a first one with allow_first"
            )
        try:
            return self._load(champion.version)
        except CorruptArtifactError as error:
            remedy = f"conversion-retrieval registry rollback --registry {self.registry.uri}"
            raise CorruptArtifactError(f"{error}; put it right, or serve the version before it: {remedy}") from None

    def load_if_changed(self, served: str) -> Retriever | None:
        """The new champion if it is another version than ``served``.

        Raises ``CorruptArtifactError`` again and again for one that cannot be read, but downloads it anew only at every
        second, fourth, eighth ... call: a version never changes, unless somebody repairs it.
        """
        champion = self.registry.champion()
        if champion is None or champion.version == served:
            return None
        broken = self._broken if self._broken and self._broken.champion == champion else _Broken(champion)
        if broken.error and not broken.is_due():
            raise broken.error.with_traceback(None)  # each poll would add to it, and keep what it had loaded
        try:
            return self._load(champion.version)
        except CorruptArtifactError as error:
            broken.error, self._broken = error, broken
            raise

    def discard_all_but(self, version: str) -> None:
        """Let go of the copies of versions that are no longer served."""
        self.cache.release_all_but(version)

    def _load(self, version: str) -> Retriever:
        retriever = Retriever.of_bundle(self.cache.fetch(self.registry, version))
        answer_a_query(retriever)
        return retriever


def answer_a_query(retriever: Retriever) -> None:
    """Ask for the neighbours of the first item: nothing is served before a real query went through all parts."""
    item_id = retriever.index.item_ids[0].as_py()
    event = {"item_id": item_id, "event_type": "click", "event_time": 0}
    request = Request(user_id="", time=1, k=1)
    (answer,) = retriever.retrieve([request], inline_events([[event]]), np.zeros(1, np.int64))
    if len(answer.item_ids) != 1:
        raise UserError(f"expected one candidate from {retriever.version}, found none: the index answers nothing")
