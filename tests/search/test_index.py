"""The index of patches: it finds places, follows the disk, resumes, and refuses what does not fit."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from densescore import DensescoreError, DenseScorer, PatchIndex
from densescore.io.files import exclusive
from densescore.jobs.many.ray_engine import RayPool
from densescore.models.registry import MODELS, ModelEntry
from densescore.search import index as module
from densescore.search.examples import mean_vector

pytest.importorskip("faiss", reason="needs the extra: pip install 'densescore[search]'")

SCALES = (1.5, 2.0, 3.0)
PLACES = {3: (48, 24), 7: (24, 48), 12: (72, 0)}
"""x, y of the motif in the photographs that hold it."""
SIDE = 24


class Textures(nn.Module):
    """Averages of 64 small random filters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 64, 5, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> DenseScorer:
    entry = ModelEntry("textures", lambda _: Textures(), dict, "none", "tests", patch_size=20)
    monkeypatch.setitem(MODELS, "textures", entry)
    return DenseScorer("textures", scales=SCALES)


def motif() -> NDArray[np.uint8]:
    return np.random.default_rng(99).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Twenty photographs of smooth noise; three hold the motif."""
    paths = []
    for number in range(20):
        draw = np.random.default_rng(number)
        small = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8))
        pixels = np.array(small.resize((96, 72), Image.Resampling.BICUBIC))
        if number in PLACES:
            x, y = PLACES[number]
            pixels[y : y + SIDE, x : x + SIDE] = motif()
        paths.append(tmp_path / "photos" / f"{number:02d}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.fixture
def index(scorer: DenseScorer, photos: list[Path], tmp_path: Path) -> PatchIndex:
    made = PatchIndex(tmp_path / "photos.index", scorer)
    assert made.add(photos) == 0
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_places_like_the_example_are_found_where_they_are(index: PatchIndex, photos: list[Path]) -> None:
    x, y = PLACES[3]
    matches = index.search(photos[3], (x, y, x + SIDE, y + SIDE), top=20)
    assert {Path(match.source) for match in matches[:3]} == {photos[number] for number in PLACES}
    assert len({match.source for match in matches}) == 20
    similarities = [match.similarity for match in matches]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[2] > similarities[3] + 0.1
    for match in matches[:3]:
        place = np.array(PLACES[int(Path(match.source).stem)]) + SIDE / 2
        center = (np.array(match.box[:2]) + match.box[2:]) / 2
        assert np.abs(center - place).max() <= SIDE / 3
        assert match.scale in SCALES


def test_counter_examples_and_several_examples(index: PatchIndex, photos: list[Path]) -> None:
    boxes = {number: (x, y, x + SIDE, y + SIDE) for number, (x, y) in PLACES.items()}
    both = index.search([(photos[number], boxes[number]) for number in (3, 7)], top=3)
    assert {Path(match.source) for match in both} == {photos[number] for number in PLACES}
    (alone,) = index.search(photos[5], top=1)
    assert Path(alone.source) == photos[5]
    plain, other = (
        [match.source for match in index.search([(photos[5], None)], top=20, unlike=unlike)]
        for unlike in ((), [(photos[14], None)])
    )
    assert plain.index(str(photos[14])) == 1
    assert other.index(str(photos[14])) >= 3


def test_the_best_places_are_further_examples(index: PatchIndex, photos: list[Path]) -> None:
    assert index.codec is not None
    x, y = PLACES[3]
    example = (photos[3], (x, y, x + SIDE, y + SIDE))
    vectors = index._content[1].reconstruct_n(0, len(index))  # [M, d]
    similarities = vectors @ mean_vector(index.scorer, index.codec, [example])
    total, weights = similarities.copy(), 1.0
    images = [similarities[image.start : image.start + len(image.pyramid)] for image in index._content[0]]
    for best in sorted((image.max() for image in images), reverse=True)[:5]:
        total += best**2 * vectors @ vectors[(similarities == best).argmax()]
        weights += best**2
    assert index.search([example], top=1)[0].similarity == pytest.approx((total / weights).max(), abs=1e-4)
    assert abs((total / weights).max() - similarities.max()) > 0.005


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    scorer: DenseScorer, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_IMAGES", 4)
    whole = PatchIndex(tmp_path / "whole", scorer)
    whole.add(photos)
    for stop in (1, 6, 13):

        def interrupt(count: int, error: str | None, stop: int = stop, done: list[int] = []) -> None:  # noqa: B006
            done.append(count)
            if sum(done) == stop:
                raise KeyboardInterrupt

        stopped = PatchIndex(tmp_path / f"stopped-{stop}", scorer)
        with pytest.raises(KeyboardInterrupt):
            stopped.add(photos, interrupt)
        again = PatchIndex(stopped.folder, scorer)
        again.add(photos)
        assert content(again.folder) == content(whole.folder)
        shutil.rmtree(again.folder)


def test_workers_make_the_same_index(photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra: pip install 'densescore[ray]'")
    monkeypatch.setattr(module, "PART_IMAGES", 4)
    scorer = DenseScorer("lite0", scales=(1.5,), runtime="torch")
    alone = PatchIndex(tmp_path / "alone", scorer)
    broken = photos[3].with_name("broken.png")
    broken.write_bytes(b"no picture")
    images = [*photos[:6], broken, *photos[6:9]]
    assert alone.add(images) == 1
    calls: list[str | None] = []

    def callback(count: int, error: str | None) -> None:
        calls.append(error)
        if len(calls) == 6:
            raise KeyboardInterrupt

    shared = PatchIndex(tmp_path / "shared", scorer)
    pool = RayPool(scorer.arguments(), workers=2)
    with ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000):
        with pytest.raises(KeyboardInterrupt):
            shared.add(images, callback, pool=pool)
        assert [path.name for path in shared._parts()] == ["part-00000000.parquet"]
        assert shared.add(images, callback, pool=pool) == 1
    assert ["broken.png" in error for error in calls if error] == [True]
    assert content(shared.folder) == content(alone.folder)


def test_a_second_run_follows_the_disk(index: PatchIndex, photos: list[Path]) -> None:
    before, patches = index.images, len(index)
    calls: list[int] = []
    assert index.add(photos, lambda count, error: calls.append(count)) == 0
    assert calls == [20]  # nothing is scored
    assert (index.images, len(index)) == (before, patches)
    # One is gone, one changes, one is new
    photos[0].unlink()
    shutil.copy(photos[3], photos[1])
    os.utime(photos[1], (1, 1))
    new = photos[0].with_name("new.png")
    shutil.copy(photos[7], new)
    index.add([*photos[1:], new])
    assert set(index.images) == {*map(str, photos[1:]), str(new)}
    x, y = PLACES[3]
    found = index.search(photos[3], (x, y, x + SIDE, y + SIDE), top=5)
    assert {Path(match.source) for match in found} == {photos[1], photos[3], photos[7], photos[12], new}
    # Only what is gone leaves: a run over other images keeps the rest
    index.add([new])
    assert len(index.images) == 20


def test_pictures_that_cannot_be_read_are_reported_and_tried_again(index: PatchIndex, photos: list[Path]) -> None:
    broken = photos[0].with_name("broken.png")
    broken.write_bytes(b"no picture")
    errors: list[str] = []
    for _ in range(2):
        assert index.add([*photos, broken], lambda _, error: errors.append(error or "")) == 1
    assert sum("broken.png" in error for error in errors) == 2
    assert str(broken) not in index.images


def test_codes_take_a_hundred_bytes_a_patch_with_everything(index: PatchIndex) -> None:
    assert index.codec is not None
    parts = sum(path.stat().st_size for path in index.folder.glob("part-*"))
    assert parts <= len(index) * (index.codec.bytes + 4) + 5000


def other_scales(index: PatchIndex) -> PatchIndex:
    return PatchIndex(index.folder, DenseScorer("textures", scales=(1.5,)))


def other_basis(index: PatchIndex) -> PatchIndex:
    other = PatchIndex(index.folder.with_name("other"), index.scorer)
    other.add(index.images[:3])
    return PatchIndex(index.folder, basis=other.folder)


def foreign_folder(index: PatchIndex) -> object:
    folder = index.folder.with_name("mine")
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    return PatchIndex(folder, index.scorer).add(index.images)


def damaged(name: str) -> Callable[[PatchIndex], object]:
    def damage(index: PatchIndex) -> object:
        path = index.folder / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 8] = b"damaged!"
        path.write_bytes(data)
        return PatchIndex.open(index.folder).search(index.images[0])

    return damage


def empty(index: PatchIndex) -> PatchIndex:
    return PatchIndex(index.folder.with_name("new"), index.scorer)


def busy(index: PatchIndex) -> object:
    with exclusive(index.folder):
        return PatchIndex.open(index.folder).add(index.images)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (other_scales, "an index of another model: it has another scales"),
        (other_basis, "an index of another basis than"),
        (foreign_folder, "densescore did not make it"),
        (damaged("part-00000000.parquet"), "part-00000000.parquet: damaged: delete it"),
        (damaged("basis.faiss"), "basis.faiss: damaged|basis.faiss: cannot be read"),
        (damaged("index.json"), "index.json: cannot be read|another model|damaged"),
        (busy, "another run is writing it"),
        (lambda index: PatchIndex.open(index.folder.with_name("none")), "none: no index"),
        (lambda index: PatchIndex(index.folder.with_name("new"), index.scorer).search(index.images[0]), "is empty"),
        (
            lambda index: PatchIndex(index.folder.with_name("new"), index.scorer).add(["gone.png"]),
            "none of the 1 images",
        ),
        (
            lambda index: index.search(index.images[0], (10, 10, 200, 20)),
            "box 10,10,200,20 is empty or outside the 96×72",
        ),
        (lambda index: index.search(index.images[0], (10, 10, 10, 20)), "is empty or outside"),
        (lambda index: index.search(index.images[0], (10, 10, 11, 11)), "the smallest patches of this index are 24"),
        (lambda index: index.search("gone.png"), "gone.png: cannot be read"),
        (lambda index: index.search([]), "at least one example"),
        (lambda index: index.search(index.images[0], top=0), "top must be at least 1"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_lost(
    index: PatchIndex, use: Callable[[PatchIndex], object], message: str
) -> None:
    with pytest.raises(DensescoreError, match=message):
        use(index)
    assert (index.folder / "part-00000000.parquet").exists()
