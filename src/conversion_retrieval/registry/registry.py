"""Immutable bundle versions and one champion pointer, in a local directory or on Google Cloud Storage.

Every change of the champion is one compare-and-swap of ``champion.json``. A version is uploaded before, its manifest
last, so the pointer never names anything incomplete; whoever loses the swap is told who won.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from conversion_retrieval.contracts import MANIFEST, Manifest, parse_manifest, safe_relative_path
from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.registry.bundle import Bundle, check_candidate, check_faiss_version, open_bundle
from conversion_retrieval.registry.decision import ChampionState, Decision, parse_decision
from conversion_retrieval.registry.pointer import (
    CHAMPION_KEY,
    HISTORY_PREFIX,
    Action,
    Champion,
    decode_champion,
    encode_champion,
    utc_now,
)
from conversion_retrieval.storage import NotFoundError, ObjectStore, PreconditionFailedError, open_store

VERSIONS_PREFIX: Final = "versions"
TOMBSTONES_PREFIX: Final = "pruned"
MAX_ATTEMPTS: Final = 10
PARTIAL_HOURS: Final = 24.0


class LostRaceError(UserError):
    """The champion is no longer the one that the candidate was compared with."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A kept version: its manifest, the evaluation's metrics, the run's configuration, the decision about it."""

    name: str
    manifest: Manifest
    metrics: list[dict[str, Any]]
    config: dict[str, Any]
    decision: Decision


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The pointer as stored: ``champion`` is None where there is none, ``error`` says why one cannot be read."""

    champion: Champion | None
    storage_generation: int
    error: CorruptArtifactError | None = None

    def known(self) -> Champion | None:
        if self.error:
            raise self.error
        return self.champion


class Registry:
    """See the module. All methods raise ``StorageUnavailableError`` when the store does not answer."""

    def __init__(self, store: ObjectStore, *, now: Callable[[], float] = time.time) -> None:
        self._store, self._now = store, now
        self.uri = store.uri

    @classmethod
    def open(cls, uri: str | Path) -> "Registry":
        """The registry at a local path or ``gs://bucket/prefix``; nothing is created before the first promotion."""
        return cls(open_store(uri))

    @classmethod
    def existing(cls, uri: str) -> "Registry":
        """The registry to read from; a local path that is not there is a mistyped one and raises ``UserError``."""
        local = uri.removeprefix("file://")
        if "://" not in local and not Path(local).is_dir():
            raise UserError(f"expected a registry at {uri}, found no such directory")
        return cls.open(uri)

    def champion(self) -> Champion | None:
        """The served version, or None before the first promotion.

        Raises ``CorruptArtifactError`` where the pointer or the manifest it names cannot be read: that is never the
        same as having no champion.
        """
        champion = self._head().known()
        if champion:
            self._pointed_manifest(champion)
        return champion

    def versions(self) -> list[str]:
        """Names of the complete versions, oldest first."""
        ends = f"/{MANIFEST}"
        keys = (key.removeprefix(f"{VERSIONS_PREFIX}/") for key in self._store.list(VERSIONS_PREFIX))
        return sorted(key.removesuffix(ends) for key in keys if key.endswith(ends) and key.count("/") == 1)

    def promote(self, bundle_dir: Path, decision: Decision) -> Champion:
        """Store the bundle and make it the champion, if the champion is still the one that it was compared with.

        Running it again after a crash or a lost answer completes the promotion or finds it done. Raises
        ``LostRaceError`` naming the winner, and ``UserError`` for a decision that is not about this bundle.
        """
        bundle = open_bundle(bundle_dir)
        check_candidate(decision, {**bundle.manifest.inputs})
        for _ in range(MAX_ATTEMPTS):
            head = self._head()
            current = head.known()
            if current and (current.version, current.digest) == (bundle.version, bundle.manifest.digest):
                return self._record(current)
            self._check_unchanged(current, decision.champion, bundle.version)
            self._check_not_pruned(bundle.version)
            self._upload(bundle)
            if swapped := self._swap(head, bundle.version, bundle.manifest.digest, "promote", decision.reason):
                return swapped
        raise self._too_busy()

    def rollback(self, version: str | None = None) -> Champion:
        """Serve an earlier version again: a kept one by name, or the champion's predecessor.

        Works with a corrupt champion when a version is named. A rollback is itself undone by another. Every byte of the
        version is verified before: ``CorruptArtifactError`` for one that no server could load.
        """
        verified: dict[str, str] = {}
        for _ in range(MAX_ATTEMPTS):
            head = self._head()
            name = _predecessor(head.known(), self.uri) if version is None else version
            self._check_not_pruned(name)
            if name not in verified:
                with TemporaryDirectory(prefix="rollback-") as directory:
                    verified[name] = self.download(name, Path(directory) / "bundle").manifest.digest
            if head.champion and head.champion.version == name:
                return self._record(head.champion)
            if swapped := self._swap(head, name, verified[name], "rollback", "rolled back by an operator"):
                return swapped
        raise self._too_busy()

    def history(self) -> list[Champion]:
        """Every champion there was, oldest first. Unreadable entries raise ``CorruptArtifactError``."""
        keys = [key for key in self._store.list(HISTORY_PREFIX) if key.endswith(".json")]
        entries = {key: decode_champion(self._store.read(key).content, where=f"{self.uri}/{key}") for key in keys}
        if champion := self._head().champion:
            entries.setdefault(champion.history_key, champion)
        return [entries[key] for key in sorted(entries)]

    def show(self, version: str) -> Version:
        """A kept version's manifest, metrics and decision; its small files are checked against their digests."""
        manifest = self.manifest(version)
        return Version(
            name=version,
            manifest=manifest,
            metrics=self._file(version, manifest, "evaluation/metrics.json"),
            config=self._file(version, manifest, "model/config.json"),
            decision=parse_decision(self._file(version, manifest, "decision.json")),
        )

    def manifest(self, version: str) -> Manifest:
        """A kept version's manifest; ``CorruptArtifactError`` where there is none that this release can read."""
        safe_relative_path(version, where=self.uri)
        key = f"{VERSIONS_PREFIX}/{version}/{MANIFEST}"
        try:
            content = self._store.read(key).content
        except NotFoundError:
            kept = ", ".join(self.versions()[-5:]) or "none"
            message = f"expected version {version} in {self.uri}, found no {MANIFEST} of it; kept versions: {kept}"
            raise CorruptArtifactError(message) from None
        manifest = parse_manifest(content, kind="bundle", where=f"{self.uri}/{VERSIONS_PREFIX}/{version}")
        check_faiss_version(manifest, where=f"{self.uri}/{key}")
        return manifest

    def download(self, version: str, directory: Path) -> Bundle:
        """Copy a version into ``directory`` (created) and open it, every byte verified.

        ``CorruptArtifactError`` names the version where it is kept, not the copy, which will soon be gone.
        """
        self.manifest(version)
        key = f"{VERSIONS_PREFIX}/{version}"
        self._store.download_directory(key, directory)
        try:
            return open_bundle(directory)
        except CorruptArtifactError as error:
            raise CorruptArtifactError(str(error).replace(str(directory), f"{self.uri}/{key}")) from None

    def prune(self, keep: int, *, partial_hours: float = PARTIAL_HOURS) -> list[str]:
        """Delete all but the newest ``keep`` versions; never the champion or its predecessor. Returns the names.

        Uploads that never got their manifest go too, once nothing was written to them for ``partial_hours``. A version
        is first marked, then the pointer is rewritten unchanged: a promotion or rollback that began before loses its
        swap and, on its next attempt, finds the mark.
        """
        if keep < 0 or partial_hours < 0:
            raise UserError(f"expected to keep 0 versions or more for 0 hours or more, found {keep}, {partial_hours:g}")
        for _ in range(MAX_ATTEMPTS):
            head = self._head()
            if (champion := head.known()) is None:
                return []
            versions = self.versions()
            old = [*versions[: max(len(versions) - keep, 0)], *self._abandoned(partial_hours * 3600)]
            doomed = [v for v in old if v not in (champion.version, champion.previous)]
            if self._mark(doomed, head, champion):
                for version in doomed:
                    self._store.delete_prefix(f"{VERSIONS_PREFIX}/{version}")
                return doomed
        raise self._too_busy()

    def partial_uploads(self) -> list[str]:
        """Names of versions without a manifest: promotions that are under way, or that never finished."""
        keys = (key.removeprefix(f"{VERSIONS_PREFIX}/") for key in self._store.list(VERSIONS_PREFIX))
        return sorted({key.partition("/")[0] for key in keys} - set(self.versions()))

    def _abandoned(self, seconds: float) -> list[str]:
        latest = self._now() - seconds
        return [v for v in self.partial_uploads() if self._store.newest_write(f"{VERSIONS_PREFIX}/{v}") <= latest]

    def _head(self) -> _Head:
        try:
            stored = self._store.read(CHAMPION_KEY)
        except NotFoundError:
            return _Head(champion=None, storage_generation=0)
        try:
            champion = decode_champion(stored.content, where=f"{self.uri}/{CHAMPION_KEY}")
        except CorruptArtifactError as error:
            return _Head(champion=None, storage_generation=stored.generation, error=error)
        return _Head(champion=champion, storage_generation=stored.generation)

    def _swap(self, head: _Head, version: str, digest: str, action: Action, reason: str) -> Champion | None:
        """Make ``version`` the champion if the pointer is still ``head``; None if someone wrote it in between."""
        if head.champion:
            self._record(head.champion)
        new = Champion(
            version=version,
            digest=digest,
            generation=self._next_generation(head),
            promoted_time=utc_now(),
            previous=head.champion.version if head.champion else "",
            action=action,
            reason=reason,
        )
        try:
            self._store.write(CHAMPION_KEY, encode_champion(new), if_generation=head.storage_generation)
        except PreconditionFailedError:
            return self._record(new) if self._was_written(new) else None
        return self._record(new)

    def _was_written(self, champion: Champion) -> bool:
        """After a refusal: did the write succeed and only its answer get lost?

        Then the pointer is this very one, or a later writer has already recorded it in the history before its own swap.
        """
        if self._head().champion == champion:
            return True
        try:
            return self._store.read(champion.history_key).content == encode_champion(champion)
        except NotFoundError:
            return False

    def _next_generation(self, head: _Head) -> int:
        if head.champion:
            return head.champion.generation + 1
        numbers = (Path(key).stem for key in self._store.list(HISTORY_PREFIX))
        return max((int(number) for number in numbers if number.isdigit()), default=0) + 1

    def _record(self, champion: Champion) -> Champion:
        """Append a champion to the history; done already is fine."""
        with contextlib.suppress(PreconditionFailedError):
            self._store.write(champion.history_key, encode_champion(champion), if_generation=0)
        return champion

    def _upload(self, bundle: Bundle) -> None:
        key = f"{VERSIONS_PREFIX}/{bundle.version}"
        try:
            kept = self.manifest(bundle.version)
        except CorruptArtifactError:
            self._store.upload_directory(bundle.directory, key)
        else:
            if kept.digest != bundle.manifest.digest:
                raise UserError(f"expected digest {bundle.manifest.digest} at {key} in {self.uri}, found {kept.digest}")

    def _mark(self, doomed: list[str], head: _Head, champion: Champion) -> bool:
        for version in filter(None, (champion.version, champion.previous)):
            # Marked by an attempt that lost against the swap to it.
            self._store.delete_prefix(f"{TOMBSTONES_PREFIX}/{version}")
        for version in doomed:
            self._store.write(f"{TOMBSTONES_PREFIX}/{version}/mark.json", b"{}\n")
        try:
            self._store.write(CHAMPION_KEY, encode_champion(champion), if_generation=head.storage_generation)
        except PreconditionFailedError:
            return False
        return True

    def _check_unchanged(self, current: Champion | None, compared: ChampionState, version: str) -> None:
        expected = compared.version if compared.status in ("present", "incomparable") else ""
        if (current.version if current else "") != expected:
            winner = f"{current.version} (promoted {current.promoted_time})" if current else "none"
            raise LostRaceError(
                f"expected champion {expected or 'none'}, with which {version} was compared, found {winner} "
                f"in {self.uri}: evaluate and gate the candidate again"
            )

    def _check_not_pruned(self, version: str) -> None:
        safe_relative_path(version, where=self.uri)
        if self._store.list(f"{TOMBSTONES_PREFIX}/{version}"):
            raise UserError(f"expected a kept version, found that {version} was pruned from {self.uri}")

    def _pointed_manifest(self, champion: Champion) -> Manifest:
        manifest = self.manifest(champion.version)
        if manifest.digest != champion.digest:
            raise CorruptArtifactError(
                f"expected digest {champion.digest[:12]} for the champion {champion.version} in {self.uri}, "
                f"found {manifest.digest[:12]} in its manifest"
            )
        return manifest

    def _file(self, version: str, manifest: Manifest, name: str) -> Any:
        """A JSON file of a version, its bytes checked against the manifest."""
        key = f"{VERSIONS_PREFIX}/{version}/{name}"
        try:
            content = self._store.read(key).content
        except NotFoundError:
            raise CorruptArtifactError(f"expected file {name}, found none in version {version} of {self.uri}") from None
        if hashlib.sha256(content).hexdigest() != manifest.files.get(name):
            raise CorruptArtifactError(f"expected {name} as promoted, found it altered in {version} of {self.uri}")
        return json.loads(content)

    def _too_busy(self) -> UserError:
        return LostRaceError(f"expected to swap the champion of {self.uri} in {MAX_ATTEMPTS} attempts, found it busy")


def _predecessor(champion: Champion | None, uri: str) -> str:
    if champion is None or not champion.previous:
        raise UserError(f"expected a champion with a predecessor in {uri}, found none: name a version")
    return champion.previous
