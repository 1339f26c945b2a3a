"""Scorers do not outlive a fork: a forked process has none of the threads that its parent's libraries compute with."""

import os

from densescore.errors import DensescoreError

_home: int | None = None


def check_process() -> None:
    """Note the process in which scoring begins, and refuse to score in one that is forked from it.

    Torch, OpenMP and OpenVINO would wait there for threads that do not exist, for ever.

    Raises:
        DensescoreError: this process was forked from one that had made a scorer.
    """
    global _home
    if _home is None:
        _home = os.getpid()
    elif _home != os.getpid():
        raise DensescoreError(
            "this process was forked from one that had made a scorer, and torch's threads do not survive a fork: start "
            "workers by 'spawn' (multiprocessing.get_context('spawn')), or before the first scorer is made"
        )
