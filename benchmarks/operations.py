"""Every fast form against torch's own layers, one operation at a time: which are kept, which torch runs.

``python benchmarks/operations.py [NAME …]`` prints, for each operation between two convolutions, the runtime that the
scorer took and the largest difference of its logits from those of the plain network, relative to the largest.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from densescore.errors import DensescoreError
from tests.network.cpu.operations import compare, operations


def main() -> None:
    """Print the table."""
    for name, layer in operations():
        if len(sys.argv) > 1 and not any(word.lower() in name.lower() for word in sys.argv[1:]):
            continue
        try:
            runtime, difference, note = compare(layer)
            print(f"{name:55} {runtime:9} {difference:8.1e}  {note[:110]}", flush=True)
        except DensescoreError as error:
            print(f"{name:55} refused            {str(error)[:110]}", flush=True)


if __name__ == "__main__":
    main()
