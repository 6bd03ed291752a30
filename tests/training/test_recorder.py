"""What a run reports; oracle: the values it was given."""

import pytest
from torch.utils.tensorboard import SummaryWriter

from conversion_retrieval.training.recorder import Recorder


@pytest.mark.parametrize("fails", ["add_scalar", "close"])
def test_events_that_cannot_be_written_are_said_once_and_the_curve_is_whole(tmp_path, monkeypatch, capsys, fails):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, fails, full)
    recorder = Recorder([], tmp_path)
    for step in (1, 2):
        recorder.record(step=step, epoch=0, split="train", values={"loss": 0.5 * step, "temperature": 0.07})
    recorder.close()
    assert [(row["step"], row["metric"], row["value"]) for row in recorder.curve] == [
        (1, "loss", 0.5),
        (1, "temperature", 0.07),
        (2, "loss", 1.0),
        (2, "temperature", 0.07),
    ]
    assert capsys.readouterr().err == "no more events for TensorBoard: [Errno 28] No space left on device\n"
