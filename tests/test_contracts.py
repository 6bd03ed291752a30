"""Artifacts appear whole or not at all, and are refused when anything about them has changed."""

import json
import os

import pytest

from conversion_retrieval import contracts
from conversion_retrieval.errors import CorruptArtifactError, UserError


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "model"
    with contracts.new_artifact(path, kind="model", inputs={"features": "abc"}, metadata={"seed": 1}) as directory:
        (directory / "nested").mkdir()
        (directory / "weights.bin").write_bytes(b"\x00\x01")
        (directory / "nested" / "config.json").write_text("{}")
    return path


def test_manifest_lists_every_file_with_its_sha256(artifact):
    manifest = contracts.open_artifact(artifact, kind="model")
    # sha256sum of two bytes 00 01 and of "{}", computed with coreutils.
    assert manifest.files == {
        "nested/config.json": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "weights.bin": "b413f47d13ee2fe6c845b2ee141af81de858df4ec549a58b7970bb96645bc8d2",
    }
    assert (manifest.inputs, manifest.metadata) == ({"features": "abc"}, {"seed": 1})


def test_equal_contents_have_equal_digests_whenever_written(artifact, tmp_path):
    with contracts.new_artifact(tmp_path / "again", kind="model") as directory:
        (directory / "nested").mkdir()
        (directory / "nested" / "config.json").write_text("{}")
        (directory / "weights.bin").write_bytes(b"\x00\x01")
    digests = {contracts.read_manifest(path, kind="model").digest for path in (artifact, tmp_path / "again")}
    assert len(digests) == 1


def _fail_while_writing(path):
    with contracts.new_artifact(path, kind="model") as directory:
        (directory / "weights.bin").write_bytes(b"half")
        raise RuntimeError


def test_all_files_and_names_are_on_the_disk_before_the_manifest_is_and_that_before_the_artifact(tmp_path, monkeypatch):
    """Oracle: what fsync(2) asks for, the directory of a new file's name beside the file."""
    synced, genuine = [], contracts.sync
    monkeypatch.setattr(contracts, "sync", lambda path: (synced.append(path), genuine(path)))
    with contracts.new_artifact(tmp_path / "a", kind="features") as directory:
        (directory / "events" / "deep").mkdir(parents=True)
        (directory / "events" / "deep" / "x.npy").write_bytes(b"x")
        (directory / "top.json").write_bytes(b"{}")
    names = [str(path.relative_to(directory)) if path.is_relative_to(directory) else path.name for path in synced]
    assert set(names[:4]) == {"events", "events/deep", "events/deep/x.npy", "top.json"}
    manifest, *last = names[4:]
    assert manifest.startswith(".manifest.json.")
    assert last == [".", tmp_path.name]


def test_nothing_appears_when_writing_fails(tmp_path):
    with pytest.raises(RuntimeError):
        _fail_while_writing(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rewrite_keeps_the_old_artifact(artifact):
    with pytest.raises(RuntimeError):
        _fail_while_writing(artifact)
    contracts.open_artifact(artifact, kind="model")
    assert (artifact / "weights.bin").read_bytes() == b"\x00\x01"


def _stranger(path):
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def _stranger_with_manifest(path):
    path.mkdir()
    (path / "manifest.json").write_text('{"kind": "snapshot"}')


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (_stranger, "found other files"),
        (_stranger_with_manifest, "found other files"),
        (lambda path: path.write_text("a file"), "found a file"),
    ],
)
def test_what_is_no_artifact_of_the_kind_is_never_replaced(tmp_path, make, found):
    path = tmp_path / "mine"
    make(path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=found), contracts.new_artifact(path, kind="model"):
        pytest.fail("must not be reached")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_an_empty_directory_and_an_artifact_of_another_release_are_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    for version in (1, 999):
        with contracts.new_artifact(tmp_path / "model", kind="model") as directory:
            (directory / "weights.bin").write_bytes(b"1")
        manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
        (tmp_path / "model" / "manifest.json").write_text(json.dumps({**manifest, "schema_version": version}))
    with contracts.new_artifact(tmp_path / "model", kind="model"):
        pass
    assert contracts.open_artifact(tmp_path / "model", kind="model").files == {}


@pytest.mark.parametrize("parent", ["a-file", "/proc/none"])
def test_an_output_that_cannot_be_made_is_refused_in_one_line(tmp_path, parent):
    (tmp_path / "a-file").write_text("")
    with pytest.raises(UserError, match=r"^expected to be able to write to .*, found: [A-Z]"):
        contracts.check_output(tmp_path / parent / "model", kind="model")


@pytest.mark.parametrize(
    "change", [{"files": None}, {"files": {"a": 1}}, {"inputs": []}, {"digest": 5}, {"extra": 1}, {"kind": None}]
)
def test_a_manifest_with_fields_of_other_types_is_corrupt(artifact, change):
    path = artifact / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CorruptArtifactError, match=rf"unreadable manifest.json in .*{next(iter(change))}"):
        contracts.read_manifest(artifact, kind="model")


def _flip(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda path: _flip(path / "weights.bin"), "weights.bin"),
        (lambda path: os.truncate(path / "weights.bin", 1), "weights.bin"),
        (lambda path: (path / "nested" / "config.json").unlink(), "nested/config.json"),
        (lambda path: (path / "extra.txt").write_text("x"), "extra.txt"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json"),
        (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json"),
    ],
)
def test_any_damage_is_refused_with_the_file_named(artifact, damage, named):
    damage(artifact)
    with pytest.raises(CorruptArtifactError, match=named):
        contracts.open_artifact(artifact, kind="model")


def _edit(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "index"}, "found kind 'index'"),
        ({"schema_version": 99}, "schema version 1, found 99"),
        ({"files": {"../outside": "00"}}, "relative path inside"),
        ({"files": {"/etc/passwd": "00"}}, "relative path inside"),
        ({"digest": "00"}, "expected digest 00"),
    ],
)
def test_a_foreign_manifest_is_refused(artifact, changes, message):
    _edit(artifact, **changes)
    with pytest.raises(CorruptArtifactError, match=message):
        contracts.open_artifact(artifact, kind="model")


def test_json_with_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        contracts.write_json(tmp_path / "metrics.json", {"recall": float("nan")})
    assert list(tmp_path.iterdir()) == []
