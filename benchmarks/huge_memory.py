"""Memory and time of `score_huge` at 1, 4 and 16 times the area, each in its own process.

    python benchmarks/huge_memory.py --out DIR      # makes images there; writes benchmarks/results/huge_memory.json

The image is scikit-image's cat, laid side by side, in a tiled, deflated TIFF. "Beyond the model" is the peak of
resident memory less what the process held when the model was loaded and had scored one small image.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import skimage
import tifffile
import typer

from densescore.bench.machine import describe_machine
from densescore.io.files import atomic_write

RESULTS = Path(__file__).parent / "results"
CHILD = """
import json, re, sys, numpy as np
from densescore import DenseScorer
from densescore.bench.machine import peak_memory
from densescore.jobs.huge import score_huge
image, folder, model, size = sys.argv[1:]
scorer = DenseScorer(model, weights="default" if model == "lite0" else None, patch_sizes=(float(size),))
scorer.score(np.zeros((300, 300, 3), np.uint8))
before = int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024 // 10**6
result = score_huge(scorer, image, folder, overwrite=True, map_step=4)
print(json.dumps({
    "patches": result["geometry"]["patches"], "tiles": result["tiles"], "seconds": result["seconds"],
    "runtime": scorer.runtime, "model_mb": before, "peak_mb": peak_memory(), "beyond_mb": peak_memory() - before,
}))
"""


def main(
    out: Annotated[Path, typer.Option(help="Folder for the images and scores.")],
    model: Annotated[str, typer.Option(help="A named model.")] = "lite0",
    patch_size: Annotated[float, typer.Option(help="Of the patches, in image pixels.")] = 448,
    sides: Annotated[str, typer.Option(help="Of the square images, in pixels.")] = "5000,10000,20000",
    result: Annotated[Path, typer.Option(help="The JSON.")] = RESULTS / "huge_memory.json",
) -> None:
    """Score one image of each size and print its peak."""
    rows = []
    out.mkdir(parents=True, exist_ok=True)
    cat = skimage.data.chelsea()
    for side in map(int, sides.split(",")):
        path = out / f"{side}.tif"
        if not path.exists():
            band = np.tile(cat, (2, -(-side // cat.shape[1]), 1))[: 256 + cat.shape[0], :side]
            across = -(-side // 256)
            tiles = (
                np.pad(piece, ((0, 256 - piece.shape[0]), (0, 256 - piece.shape[1]), (0, 0)))
                for row in range(across)
                for col in range(across)
                for start in [row * 256 % cat.shape[0]]
                for piece in [band[start : start + 256, col * 256 : (col + 1) * 256]]
            )
            with atomic_write(path) as temporary:
                tifffile.imwrite(
                    temporary,
                    tiles,
                    shape=(side, side, 3),
                    dtype="uint8",
                    tile=(256, 256),
                    compression="zlib",
                    photometric="rgb",
                )
        command = [sys.executable, "-c", CHILD, str(path), str(out / f"{side}-scores"), model, str(patch_size)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append({"side": side, **json.loads(done.stdout)})
        print(json.dumps(rows[-1]), flush=True)
    record = {"command": f"python benchmarks/huge_memory.py --out DIR --model {model} --patch-size {patch_size:g}"}
    result.write_text(
        json.dumps({**record, "model": model, "machine": describe_machine(), "rows": rows}, indent=2) + "\n"
    )


if __name__ == "__main__":
    typer.run(main)
