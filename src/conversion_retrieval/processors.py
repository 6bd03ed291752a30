"""How many processors a process may use: in a container fewer than its machine has."""

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

CPU_MAX: Final = Path("/sys/fs/cgroup/cpu.max")  # of a container its own limit: "<quota> <period>", "max" without one


def usable_processors() -> int:
    """Processors that may be used, at least 1; threads beyond them cost their memory and gain no time.

    ``os.cpu_count`` knows the machine alone, whose processors a pod shares with others.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no control groups, or no limit
        quota, period = CPU_MAX.read_text().split()
        usable = min(usable, math.ceil(int(quota) / int(period)))
    return usable
