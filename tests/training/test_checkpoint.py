import shutil
from pathlib import Path

import pytest
import torch

from conversion_retrieval.errors import UserError
from conversion_retrieval.training.checkpoint import Checkpoint, Checkpoints, Position


def checkpoint(step: int) -> Checkpoint:
    curve = [{"step": step, "epoch": 0, "split": "train", "metric": "loss", "value": 0.1}]
    return Checkpoint(
        position=Position(step=step, curve=curve),
        tensors={"model/w": torch.full((2,), float(step)), "best/w": torch.ones(1)},
    )


def store(directory, fingerprint="run", keep=2) -> Checkpoints:
    return Checkpoints(directory=directory, fingerprint=fingerprint, keep=keep)


def test_what_is_saved_is_read_back(tmp_path):
    store(tmp_path).save(checkpoint(3))
    found = store(tmp_path).latest()
    assert found.position == checkpoint(3).position
    assert found.group("model")["w"].tolist() == [3.0, 3.0]
    assert set(found.group("best")) == {"w"}


def test_only_the_newest_are_kept_each_under_an_id_of_its_own(tmp_path):
    checkpoints = store(tmp_path)
    for step in (2, 9, 10, 10):
        checkpoints.save(checkpoint(step))
    names = sorted(path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir())
    assert names == ["step-000000009", "step-000000010"]


def test_a_checkpoint_replaces_those_of_its_step_whatever_their_ids_and_the_clock_say(tmp_path):
    checkpoints, state = store(tmp_path), checkpoint(5)
    for value in range(8):  # by name, or by time in seconds, an earlier one would be taken sooner or later
        state.position.share_values = [float(value)]
        newest = checkpoints.save(state)
        assert checkpoints.latest().position.share_values == [float(value)]
        assert list(tmp_path.iterdir()) == [newest]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, capsys):
    checkpoints = store(tmp_path)
    checkpoints.save(checkpoint(1))
    newest = checkpoints.save(checkpoint(2))
    with (newest / "tensors.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert checkpoints.latest().position.step == 1
    assert "checkpoint passed over: expected digest" in capsys.readouterr().err


@pytest.mark.parametrize("keep", [1, 2])
def test_what_is_saved_after_a_damaged_checkpoint_stays(tmp_path, keep):
    """Oracle: the checkpoint that was just written is the one to go on from, however far the damaged ones had come."""
    checkpoints = store(tmp_path, keep=keep)
    for step in (80, 90):
        damaged = checkpoints.save(checkpoint(step)) / "tensors.safetensors"
        damaged.write_bytes(damaged.read_bytes()[:-1])
    assert checkpoints.latest() is None
    copy = tmp_path / "step-best"
    copy.mkdir()
    newest = checkpoints.save(checkpoint(50))
    assert checkpoints.latest().path == newest
    assert set(tmp_path.iterdir()) == {newest, copy}


def test_what_a_process_killed_while_it_wrote_left_behind_goes_with_the_next_checkpoint(tmp_path, monkeypatch):
    """Oracle: what lies there once the next is written; a killed process removes nothing, as ``rmtree`` here."""
    checkpoints = store(tmp_path)

    def write_and_die(_tensors: object, path: str) -> None:
        Path(path).write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr("conversion_retrieval.training.checkpoint.save_file", write_and_die)
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                checkpoints.save(checkpoint(3))
    assert list(tmp_path.iterdir())
    assert checkpoints.latest() is None
    newest = checkpoints.save(checkpoint(2))
    assert list(tmp_path.iterdir()) == [newest]


def test_a_checkpoint_without_its_manifest_does_not_exist(tmp_path):
    path = store(tmp_path).save(checkpoint(1))
    (path / "manifest.json").unlink()
    assert store(tmp_path).latest() is None


@pytest.mark.parametrize(
    ("other", "told"),
    [("1-2-9-4-5", "other training at"), ("1-9-3-4-9", "other losses and spec at"), ("", "other model at")],
)
def test_another_runs_checkpoints_are_refused_with_what_is_other_about_them(tmp_path, other, told):
    store(tmp_path, fingerprint=other).save(checkpoint(1))
    with pytest.raises(UserError, match=f"expected a checkpoint of this configuration and data, .* {told} {tmp_path}"):
        store(tmp_path, fingerprint="1-2-3-4-5").latest()


def test_an_empty_directory_has_no_checkpoint(tmp_path):
    assert store(tmp_path / "none").latest() is None
