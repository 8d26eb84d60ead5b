"""Which core a process runs on.

Python runs one thread at a time. With threads on several cores it goes from core to core dozens of
times for each delivery, which takes a third of the CPU time (bench/README.md).
"""

import os
from contextlib import suppress
from secrets import randbelow

# Drawn once for all workers of a service: those of several containers on one host, which all begin
# to count at one, would otherwise be on the same cores.
FIRST = randbelow(1_024)


def stay_on_one_core(number: int = 0) -> None:
    """Keep this process, and the threads that it is to start, on one of the cores that it may use.

    Processes with consecutive numbers are on different ones. Where the system has no such call or
    does not allow it, nothing changes.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    with suppress(OSError):
        os.sched_setaffinity(0, {cores[(FIRST + number) % len(cores)]})
