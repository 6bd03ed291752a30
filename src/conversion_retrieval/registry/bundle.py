"""The bundle: all that serving needs in one directory under one digest, checked whole on opening.

```
model/  index/  spec/     the artifacts as they were made, manifests included
evaluation/metrics.json   what was measured
items.parquet             the catalogue: ids, advertisers and raw columns of the context items
features.json             windows and names that the features were built with
profile.json              the training data's profile for drift checks, when there is one
decision.json             why it was promoted
```
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import faiss

from conversion_retrieval.contracts import MANIFEST, Manifest, new_artifact, open_artifact, read_manifest
from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.registry.decision import DECISION_FILE, Decision, read_decision

WHOLE_PARTS: Final = ("model", "index", "spec")
FEATURE_FILES: Final = ("items.parquet", "features.json")
OPTIONAL_FEATURE_FILES: Final = ("profile.json",)
DIGEST_CHARACTERS: Final = 12


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle: verified byte for byte, its parts known to belong together."""

    directory: Path
    manifest: Manifest
    decision: Decision

    @property
    def version(self) -> str:
        """The name under which a registry keeps it."""
        return version_name(self.manifest)


def assemble_bundle(
    path: Path,
    *,
    features_dir: Path,
    spec_dir: Path,
    model_dir: Path,
    evaluation_dir: Path,
    index_dir: Path,
    decision_dir: Path,
) -> Manifest:
    """Copy the parts into a bundle at ``path``; the same artifacts always give the same digest.

    Raises ``CorruptArtifactError`` naming the file where an artifact is not as it was written, and ``UserError`` where
    the decision was made about other artifacts.
    """
    sources = {"features": features_dir, "spec": spec_dir, "model": model_dir, "index": index_dir}
    sources |= {"evaluation": evaluation_dir, "decision": decision_dir}
    manifests = {kind: open_artifact(directory, kind=kind) for kind, directory in sources.items()}
    digests = {kind: manifest.digest for kind, manifest in manifests.items()}
    check_candidate(read_decision(decision_dir), digests)
    metadata = {"decided_time": manifests["decision"].created_time, "faiss_version": faiss.__version__}
    with new_artifact(path, kind="bundle", inputs=digests, metadata=metadata) as bundle_dir:
        for part in WHOLE_PARTS:
            shutil.copytree(sources[part], bundle_dir / part)
        for name in (*FEATURE_FILES, *(n for n in OPTIONAL_FEATURE_FILES if (features_dir / n).is_file())):
            shutil.copyfile(features_dir / name, bundle_dir / name)
        (bundle_dir / "evaluation").mkdir()
        shutil.copyfile(evaluation_dir / "metrics.json", bundle_dir / "evaluation" / "metrics.json")
        shutil.copyfile(decision_dir / DECISION_FILE, bundle_dir / DECISION_FILE)
    return read_manifest(path, kind="bundle")


def check_candidate(decision: Decision, digests: dict[str, str]) -> None:
    """Refuse artifacts other than those that were judged, and a verdict other than ``promote``."""
    if decision.verdict != "promote":
        raise UserError(f"expected the verdict promote, found {decision.verdict}: {decision.reason}")
    if not decision.candidate:
        raise UserError("expected the digests of the judged artifacts in the decision, found none: run the gate again")
    for kind, expected in decision.candidate.items():
        if (found := digests.get(kind, "")) != expected:
            raise UserError(
                f"expected the {kind} that the gate judged ({expected[:DIGEST_CHARACTERS]}), "
                f"found {found[:DIGEST_CHARACTERS] or 'none'}: run the gate on the artifacts that you promote"
            )


def open_bundle(directory: Path) -> Bundle:
    """Open and verify a bundle.

    Raises ``CorruptArtifactError`` naming the file that is missing, altered or unexpected; the part that belongs to
    another model; the schema version or the FAISS file version that this release cannot read.
    """
    manifest = open_artifact(directory, kind="bundle")
    check_faiss_version(manifest, where=str(directory))
    parts = {part: read_manifest(directory / part, kind=part) for part in WHOLE_PARTS}
    for part, found in parts.items():
        if found.digest != manifest.inputs.get(part):
            raise _mixed_up(directory / part / MANIFEST, part, manifest.inputs.get(part, ""), found.digest)
    if (indexed := parts["index"].inputs.get("model", "")) != parts["model"].digest:
        raise _mixed_up(directory / "index" / MANIFEST, "model of the index", parts["model"].digest, indexed)
    return Bundle(directory=directory, manifest=manifest, decision=read_decision(directory))


def check_faiss_version(manifest: Manifest, *, where: str) -> None:
    """FAISS reads files of older releases, not of newer ones."""
    written = str(manifest.metadata.get("faiss_version", ""))
    if not written:
        raise CorruptArtifactError(f"expected the FAISS version that wrote the index, found none in {where}")
    if _numbers(written) > _numbers(faiss.__version__):
        raise CorruptArtifactError(
            f"expected an index of FAISS {faiss.__version__} or older, found {written} in {where}: upgrade faiss-cpu"
        )


def version_name(manifest: Manifest) -> str:
    """``<time of the decision>-<digest>``: sorts by time, and a retried promotion finds its own version again."""
    decided = str(manifest.metadata["decided_time"]).partition("+")[0]
    return f"{decided.replace('-', '').replace(':', '')}-{manifest.digest[:DIGEST_CHARACTERS]}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _mixed_up(path: Path, part: str, expected: str, found: str) -> CorruptArtifactError:
    expected, found = (digest[:DIGEST_CHARACTERS] or "none" for digest in (expected, found))
    return CorruptArtifactError(
        f"expected {part} {expected}, found {found} at {path}: files of two bundles are mixed up"
    )
