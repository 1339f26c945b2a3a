"""The programs ``densescore`` and ``densescore-bench``.

``python -m densescore`` is the former, for torchrun: ``torchrun --nproc-per-node 8 -m densescore pretrain …``.
"""

import sys
from importlib import import_module


def main() -> None:
    """Run ``densescore``."""
    _run("densescore.cli.main")


def bench() -> None:
    """Run ``densescore-bench``."""
    _run("densescore.cli.bench")


def _run(module: str) -> None:
    try:
        import_module(module).run()
    except KeyboardInterrupt:  # during the import
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
