"""A training worker that fails on purpose: ``FAULT=kill:5`` or ``FAULT=terminate:7`` says how and at which step."""

import os
import signal
import socket

from conversion_retrieval.training import worker
from conversion_retrieval.training.step import Learner

FAULT, _, STEP = os.environ.get("FAULT", "").partition(":")
learn = Learner.learn


def fail(rank: int) -> None:
    """``kill``: the second worker dies at once. ``terminate``: torchrun itself gets SIGTERM and passes it on."""
    if FAULT == "kill" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULT == "terminate" and rank == 0:
        passed_on, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno())
        os.kill(os.getppid(), signal.SIGTERM)
        passed_on.recv(1)


def learn_and_fail(self: Learner, batch, step):
    if FAULT and step == int(STEP):
        fail(self.shard.rank)
    return learn(self, batch, step)


if __name__ == "__main__":
    Learner.learn = learn_and_fail
    worker.main()
