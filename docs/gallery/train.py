"""Classes of your own: draw a few boxed pictures, train a head on them, and look for its classes in a new one."""

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

CLASSES = ("disc", "square", "star")
WIDTH, HEIGHT = 320, 240


def draw(random: np.random.Generator, shapes: list[int]) -> tuple[Image.Image, list[list[float]]]:
    """Shapes of any color on grass, gravel or brick, side by side; and their boxes, x y width height."""
    ground = [skimage.data.grass(), skimage.data.gravel(), skimage.data.brick()][random.integers(3)]
    top, left = random.integers(512 - HEIGHT), random.integers(512 - WIDTH)
    picture = Image.fromarray(ground[top : top + HEIGHT, left : left + WIDTH]).convert("RGB")
    boxes = []
    for place, shape in enumerate(shapes):
        room = WIDTH / len(shapes)
        side = random.uniform(80, 130)
        x, y = room * place + random.uniform(0, room - side), random.uniform(0, HEIGHT - side)
        turns = np.arange(10) / 10 * 2 * np.pi
        radius = np.where(np.arange(10) % 2, 0.22, 0.5)
        star = np.stack([0.5 + radius * np.sin(turns), 0.5 - radius * np.cos(turns)], axis=1) * side + (x, y)
        color = tuple(random.integers(0, 256, 3).tolist())
        pen = ImageDraw.Draw(picture)
        if CLASSES[shape] == "disc":
            pen.ellipse((x, y, x + side, y + side), fill=color)
        elif CLASSES[shape] == "square":
            pen.rectangle((x, y, x + side, y + side), fill=color)
        else:
            pen.polygon([tuple(point) for point in star.tolist()], fill=color)
        boxes.append([x, y, side, side])
    return picture, boxes


def write_coco(folder: Path, count: int, random: np.random.Generator) -> None:
    """Pictures, and their boxes in COCO's layout."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        shapes = random.permutation(3)[: 1 + number % 2].tolist()
        picture, boxes = draw(random, shapes)
        picture.save(folder / "train" / f"{number}.jpg", quality=92)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT})
        for shape, box in zip(shapes, boxes, strict=True):
            one = {"id": len(annotations) + 1, "image_id": number, "category_id": shape, "bbox": box}
            annotations.append({**one, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))


def main(
    out: Path = Path(__file__).with_suffix(".jpg"), head: Path = Path("shapes.safetensors"), count: int = 24
) -> None:
    random = np.random.default_rng(1)
    # A few pictures need fewer and shorter rounds than the default recipe's.
    recipe = replace(
        RECIPES["default"], scales=(1.0, 1.3, 2.0), test_scales=None, width=256, round=2048, image_rounds=2
    )
    with tempfile.TemporaryDirectory() as folder:
        write_coco(Path(folder) / "shapes", count, random)
        boxed = load_boxed(Path(folder) / "shapes", "train", need_positives=True)
        scorer = DenseScorer("lite0", scales=recipe.scales)
        cache = FeatureCache(scorer, Path(folder) / "features")
        save_head(head, train_model(boxed, scorer, cache, recipe, seed=0), overwrite=True)

    picture, boxes = draw(random, [2, 0])
    photo = np.asarray(picture)
    scores = DenseScorer(head).score(photo)
    for found in scores.top(3):
        print(f"{found.confidence:.2g}  {found.label}")
    print("drawn:", boxes, "found:", scores.locate(["star", "disc"]))
    scores.plot_sheet(CLASSES).savefig(out, dpi=70)


if __name__ == "__main__":
    cyclopts.run(main)
