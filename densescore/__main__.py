"""The programs ``densescore`` and ``densescore-bench``; ``python -m densescore`` is the first.

The latter is for torchrun: ``torchrun --nproc-per-node 8 -m densescore pretrain …``.
"""

import sys
from importlib import import_module


def main() -> None:
    """The program ``densescore``."""
    _run("densescore.cli.main")


def bench() -> None:
    """The program ``densescore-bench``."""
    _run("densescore.cli.bench")


def _run(module: str) -> None:
    """Import a module and call its `run`; an interrupt, even during the import, is one line and status 130."""
    try:
        import_module(module).run()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
