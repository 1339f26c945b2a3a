"""Where in scikit-image's photographs something looks like a motorcycle's wheel, on a contact sheet."""

import tempfile
from pathlib import Path

import cyclopts
import skimage

import densescore
from densescore.search.match import contact_sheet

NAMES = ("motorcycle_left.png", "motorcycle_right.png", "astronaut.png", "camera.png", "chelsea.png", "coffee.png",
         "rocket.jpg", "grass.png")  # fmt: skip


def main(out: Path = Path(__file__).with_suffix(".jpg")) -> None:
    folder = Path(skimage.data.__file__).parent
    scorer = densescore.DenseScorer("lite0-stages", scales=(1, 1.6, 2.4))
    with tempfile.TemporaryDirectory() as temporary:
        index = densescore.PatchIndex(Path(temporary) / "photos.index", scorer)
        index.add([folder / name for name in NAMES])
        matches = index.search(folder / NAMES[0], box=(80, 240, 240, 400), top=6)
    for match in matches:
        print(Path(match.source).name, round(match.similarity, 2))
    contact_sheet(matches).save(out, overwrite=True)


if __name__ == "__main__":
    cyclopts.run(main)
