"""Finding the champion to compare with: absent, present, corrupt and unreachable are four different answers."""

from dataclasses import replace
from pathlib import Path

from conversion_retrieval.errors import CorruptArtifactError
from conversion_retrieval.registry.decision import ChampionState
from conversion_retrieval.registry.registry import Registry
from conversion_retrieval.storage import NotFoundError, StorageUnavailableError


def fetch_champion(registry_uri: str, directory: Path) -> ChampionState:
    """Download the champion's bundle into ``directory`` and say what was found.

    Never raises for the registry's condition: an unreadable champion is ``corrupt``, a registry that does not answer is
    ``unreachable``, and only a registry that answers and has no pointer is ``absent``. An empty URI is ``absent``.
    """
    if not registry_uri:
        return ChampionState(status="absent", reason="no registry was given")
    try:
        return _fetch(Registry.open(registry_uri), directory)
    except StorageUnavailableError as error:
        return ChampionState(status="unreachable", reason=str(error))
    except (CorruptArtifactError, NotFoundError) as error:
        return ChampionState(status="corrupt", reason=str(error))


def _fetch(registry: Registry, directory: Path) -> ChampionState:
    champion = registry.champion()
    if champion is None:
        return ChampionState(status="absent", reason=f"{registry.uri} has no champion")
    found = ChampionState(status="present", version=champion.version, digest=champion.digest)
    try:
        registry.download(champion.version, directory)
    except CorruptArtifactError as error:
        return replace(found, status="corrupt", reason=str(error))
    return found
