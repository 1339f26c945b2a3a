"""Memory and time of `score_huge` at 1, 4 and 16 times the area, each in its own process.

    python benchmarks/huge_memory.py --out DIR      # makes images there; writes benchmarks/results/huge_memory.json

The image is scikit-image's cat, laid side by side, in a tiled, deflated TIFF. "Beyond the model" is the peak of
resident memory less that of the loaded model after one small image.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import skimage
import tifffile
from common import RESULTS, write_record
from cyclopts import Parameter, run

from densescore.io.files import atomic_write

CHILD = """
import json, re, sys, numpy as np
from densescore import DenseScorer
from densescore.bench.run import peak_memory
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
    *,
    out: Annotated[Path, Parameter(help="Folder for the images and scores.")],
    model: Annotated[str, Parameter(help="A named model.")] = "lite0",
    patch_size: Annotated[float, Parameter(help="Of the patches, in image pixels.")] = 448,
    sides: Annotated[str, Parameter(help="Of the square images, in pixels.")] = "5000,10000,20000",
    result: Annotated[Path, Parameter(help="The JSON.")] = RESULTS / "huge_memory.json",
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
            options: dict[str, Any] = {"tile": (256, 256), "compression": "zlib", "photometric": "rgb"}
            with atomic_write(path) as temporary:
                tifffile.imwrite(temporary, tiles, shape=(side, side, 3), dtype="uint8", **options)
        child = [sys.executable, "-c", CHILD, str(path), str(out / f"{side}-scores"), model, str(patch_size)]
        done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
        rows.append({"side": side, **json.loads(done.stdout)})
        print(json.dumps(rows[-1]), flush=True)
    command = f"python benchmarks/huge_memory.py --out DIR --model {model} --patch-size {patch_size:g}"
    write_record(result, command=command, model=model, rows=rows)


if __name__ == "__main__":
    run(main)
