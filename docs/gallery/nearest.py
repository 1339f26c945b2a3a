"""What in other photographs looks most like a patch: nearest neighbors of the network's features."""

from pathlib import Path

import cyclopts
import numpy as np
import skimage
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image
from sklearn.neighbors import NearestNeighbors

import densescore

NAMES = ("motorcycle_left.png", "motorcycle_right.png", "astronaut.png", "camera.png", "chelsea.png", "coffee.png",
         "rocket.jpg", "hubble_deep_field.jpg")  # fmt: skip
# Photograph, and the place of the patch to look for, as shares of width and height.
QUERIES = (("motorcycle_left.png", 0.2, 0.7), ("astronaut.png", 0.45, 0.25), ("chelsea.png", 0.6, 0.4))
SHOWN = 5


def main(out: Path = Path(__file__).with_suffix(".jpg")) -> None:
    folder = Path(skimage.data.__file__).parent
    photos = {name: densescore.read_image(folder / name) for name in NAMES}
    photos |= {name: load_sample_image(name) for name in ("china.jpg", "flower.jpg")}

    scorer = densescore.DenseScorer("lite0", scales=(1.6, 2.4))
    found = {name: scorer.patches(photo) for name, photo in photos.items()}
    features = np.concatenate([patches.features.numpy() for patches in found.values()])  # [M, D]
    boxes = np.concatenate([patches.boxes.numpy() for patches in found.values()])  # [M, 4]: x0 y0 x1 y1
    owners = np.repeat(list(found), [len(patches) for patches in found.values()])  # [M]
    index = NearestNeighbors(metric="cosine").fit(features)

    figure = Figure(figsize=(9, 1.65 * len(QUERIES)), layout="constrained")
    for row, (name, x, y) in zip(figure.subplots(len(QUERIES), 1 + SHOWN), QUERIES, strict=True):
        height, width = photos[name].shape[:2]
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2 / (width, height)  # [M, 2]
        query = np.where(owners == name, np.hypot(*(centers - (x, y)).T), np.inf).argmin()
        distances, nearest = (values[0] for values in index.kneighbors(features[[query]], len(features)))
        firsts = np.sort(np.unique(owners[nearest], return_index=True)[1])  # the nearest one of each photograph
        print(f"{name}: {owners[nearest[firsts[1]]]} has the nearest, cosine {1 - distances[firsts[1]]:.2f}")
        for axes, place in zip(row, firsts, strict=False):  # the first is the patch itself
            patch = nearest[place]
            photo = photos[owners[patch]]
            x0, y0, x1, y1 = np.clip(boxes[patch].round().astype(int), 0, [photo.shape[1], photo.shape[0]] * 2)
            axes.imshow(photo[y0:y1, x0:x1])
            axes.set_title("the patch" if patch == query else f"{1 - distances[place]:.2f}", fontsize=9)
            axes.set_axis_off()
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    cyclopts.run(main)
