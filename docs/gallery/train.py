"""Classes of your own: compose a few boxed pictures, train a head on them, and look for its classes in a new one."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import skimage
from PIL import Image, ImageDraw

from densescore import DenseScorer
from densescore.data.load import load_boxed
from densescore.models.head import save_head
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.pipeline import train_model
from densescore.transfer.recipe import RECIPES

CLASSES = ("cat", "cup", "wheel")
WIDTH, HEIGHT = 320, 240


def cut_outs() -> list[Image.Image]:
    """A square of a photograph for each class."""
    photos = skimage.data.chelsea(), skimage.data.coffee(), skimage.data.stereo_motorcycle()[0]
    squares = (110, 20, 350, 260), (170, 10, 450, 290), (60, 200, 300, 440)
    return [Image.fromarray(photo).crop(square) for photo, square in zip(photos, squares, strict=True)]


def compose(random: np.random.Generator, shown: list[int]) -> tuple[Image.Image, list[list[float]]]:
    """Discs cut out of photographs, on grass, gravel or brick, side by side; and their boxes, x y width height."""
    ground = [skimage.data.grass(), skimage.data.gravel(), skimage.data.brick()][random.integers(3)]
    top, left = random.integers(512 - HEIGHT), random.integers(512 - WIDTH)
    picture = Image.fromarray(ground[top : top + HEIGHT, left : left + WIDTH]).convert("RGB")
    boxes = []
    for place, number in enumerate(shown):
        room = WIDTH / len(shown)
        side = int(random.uniform(80, 130))
        x, y = int(room * place + random.uniform(0, room - side)), int(random.uniform(0, HEIGHT - side))
        disc = Image.new("L", (side, side))
        ImageDraw.Draw(disc).ellipse((0, 0, side, side), fill=255)
        cut = cut_outs()[number].resize((side, side)).rotate(random.uniform(-15, 15))
        picture.paste(cut, (x, y), disc)
        boxes.append([float(x), float(y), float(side), float(side)])
    return picture, boxes


def write_coco(folder: Path, count: int, random: np.random.Generator) -> None:
    """Pictures, and their boxes in COCO's layout."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        shown = random.permutation(3)[: 1 + number % 2].tolist()
        picture, boxes = compose(random, shown)
        picture.save(folder / "train" / f"{number}.jpg", quality=92)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT})
        for each, box in zip(shown, boxes, strict=True):
            one = {"id": len(annotations) + 1, "image_id": number, "category_id": each, "bbox": box}
            annotations.append({**one, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))


def main(
    out: Path = Path(__file__).with_suffix(".jpg"), head: Path = Path("cut-outs.safetensors"), count: int = 24
) -> None:
    random = np.random.default_rng(1)
    # A few pictures need fewer and shorter rounds than the default recipe's.
    recipe = replace(
        RECIPES["default"], scales=(1.6, 2.4, 3.2), test_scales=None, width=256, round=2048, image_rounds=2
    )
    with tempfile.TemporaryDirectory() as folder:
        write_coco(Path(folder) / "cut-outs", count, random)
        boxed = load_boxed(Path(folder) / "cut-outs", "train", need_positives=True)
        scorer = DenseScorer("lite0", scales=recipe.scales)
        cache = FeatureCache(scorer, Path(folder) / "features")
        save_head(head, train_model(boxed, scorer, cache, recipe, seed=0), overwrite=True)

    picture, boxes = compose(random, [2, 0])
    photo = np.asarray(picture)
    scores = DenseScorer(head).score(photo)
    for found in scores.top(3):
        print(f"{found.confidence:.2g}  {found.label}")
    print("shown:", boxes, "found:", scores.locate(["wheel", "cat"]))
    scores.plot_sheet(CLASSES).savefig(out, dpi=70)


if __name__ == "__main__":
    cyclopts.run(main)
