"""Many photographs into one table: a stream of scores, rows for pandas, a parquet file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cyclopts
import pandas
import skimage
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import densescore

NAMES = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "motorcycle_left.png", "gone.png")


def rows(paths: list[Path]) -> Iterator[dict[str, Any]]:
    for item in densescore.score_many(paths):  # holds a few images at once, however many there are
        values = item.scores.to_row(top=3) if item.scores else {"error": item.error}
        yield {"image": str(item.source), **values}


def main(
    out: Path = Path(__file__).with_suffix(".jpg"), table: Path = Path("scores.parquet"), names: str = ",".join(NAMES)
) -> None:
    folder = Path(skimage.data.__file__).parent
    found = pandas.DataFrame(rows([folder / name for name in names.split(",")]))
    found.to_parquet(table)
    print(found[["label", "confidence", "patches", "error"]])

    scored = found[found["error"].isna()]
    figure = Figure(figsize=(9, 2.5), layout="constrained")
    for place, row in zip(figure.subplots(1, len(scored)), scored.itertuples(), strict=True):
        photo = densescore.read_image(row.image)
        place.imshow(photo)
        best = row.regions[0]  # of those where the class's map is above half of its peak, the one that holds the peak
        corner, size = (best["x0"], best["y0"]), (best["x1"] - best["x0"], best["y1"] - best["y0"])
        place.add_patch(Rectangle(corner, *size, fill=False, edgecolor="#e6194b", linewidth=2))
        place.set_title(f"{row.label}\n{row.confidence:.2g}", fontsize=9)
        place.set_axis_off()
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    cyclopts.run(main)
