"""How many CPU cores this process may really use."""

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota: Path = _QUOTA) -> int:
    """Cores by affinity and by the container's quota, at least 1.

    A container with a limit of two cores on a machine of 64 still sees 64, and torch would start 64 threads on two.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed_us, period_us = quota.read_text().split()
    except (OSError, ValueError):
        return cores
    if allowed_us == "max":
        return cores
    return max(1, min(cores, math.ceil(int(allowed_us) / int(period_us))))


def engine_threads(workers: int = 1, cores: int | None = None) -> int:
    """Threads of a forward pass, where none are set.

    One core is left to the API process: a pass waits for its slowest thread, and one that has to share its core makes
    all of them wait. Of two cores that would be half the machine, which is more than the waiting costs. Several workers
    divide the cores, and none waits for another.
    """
    usable = cores or usable_cores()
    if workers > 1:
        return max(1, usable // workers)
    return usable if usable <= 2 else usable - 1
