"""A large picture, read by windows: find the cups of espresso in a wall of photographs."""

import tempfile
from pathlib import Path

import cyclopts
import numpy as np
import skimage
import tifffile
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from densescore import DenseScorer
from densescore.jobs.huge import score_huge


def write_wall(path: Path, rows: int, cols: int) -> None:
    """Photographs of 300×450 pixels side by side, as a TIFF in tiles."""
    photos = [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket(), skimage.data.astronaut()]
    fitted = [(skimage.transform.resize(photo, (300, 450)) * 255).astype(np.uint8) for photo in photos]
    wall = [[fitted[(row + 3 * col * col) % 4] for col in range(cols)] for row in range(rows)]
    tifffile.imwrite(path, np.block([[[photo] for photo in row] for row in wall]), tile=(256, 256), photometric="rgb")


def main(out: Path = Path(__file__).with_suffix(".jpg"), rows: int = 5, cols: int = 6) -> None:
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "wall.tif"
        write_wall(image, rows, cols)

        scorer = DenseScorer("lite0", patch_sizes=(224,))  # how large a cup is, in pixels of the picture
        result = score_huge(scorer, image, Path(folder) / "scores", classes=["espresso"], map_step=3)
        found = result["classes"][0]
        print(f"{result['tiles']} tiles; the best patches: {found['best_patches']}")

        with tifffile.TiffFile(Path(folder) / "scores" / found["response_map"]) as file:
            values = file.series[0].levels[0].asarray()  # every third pixel, as map_step says
        wall = tifffile.imread(image)
    height, width = wall.shape[:2]
    figure = Figure(figsize=(9, 9 * height / width), layout="constrained")
    axes = figure.subplots()
    axes.imshow(wall, extent=(0, width, height, 0))
    colors = PowerNorm(0.5, 0, 1)
    axes.imshow(values, cmap="turbo", norm=colors, alpha=0.1 + 0.6 * colors(values), extent=(0, width, height, 0))
    for best in found["best_patches"]:
        x0, y0, x1, y1 = best["box"]
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="white", linewidth=2))
    axes.set_axis_off()
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 75})


if __name__ == "__main__":
    cyclopts.run(main)
