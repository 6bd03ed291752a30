import os
import signal
import sys

import pytest

from conversion_retrieval.training.interruption import (
    Abandoned,
    Interrupted,
    StopRequest,
    run_and_forward_sigterm,
    stop_on_sigterm,
)

# A process that has its parent terminated and ends, with what it was asked, once the signal is passed on to it.
TERMINATES_ITS_PARENT = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(os.getppid(), signal.SIGTERM)
signal.sigwait([signal.SIGTERM])
open(os.environ["MARK"], "w").close()
"""


def test_sigterm_reaches_the_command_and_is_reported_when_it_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        run_and_forward_sigterm([sys.executable, "-c", TERMINATES_ITS_PARENT])
    assert (tmp_path / "mark").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_a_signal_the_commands_exit_code_is_returned():
    assert run_and_forward_sigterm([sys.executable, "-c", "raise SystemExit(3)"]) == 3


def terminate_oneself() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    pytest.fail("went on after the signal")


def test_work_that_may_be_abandoned_is_and_other_work_goes_on():
    with stop_on_sigterm() as stop:
        with pytest.raises(Abandoned), stop.abandoning():
            terminate_oneself()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received  # and nothing was raised
        with pytest.raises(Abandoned), stop.abandoning():
            pytest.fail("began after the signal")


def test_a_second_signal_does_not_disturb_the_way_out():
    stop = StopRequest()

    def signal_twice() -> None:
        try:
            stop(signal.SIGTERM, None)
        finally:
            stop(signal.SIGTERM, None)

    with pytest.raises(Abandoned) as caught, stop.abandoning():
        signal_twice()
    assert caught.value.__context__ is None
