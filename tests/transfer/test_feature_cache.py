"""Cached features: whose they are, and that they are bounded and mended."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from densescore import DenseScorer, read_image
from densescore.data.load import load_boxed
from densescore.transfer.feature_cache import FeatureCache
from densescore.transfer.pipeline import cached_scores
from tests.conftest import Toy
from tests.transfer.conftest import SCALES


def test_cached_features_are_the_scorers_and_are_computed_once(toy: DenseScorer, voc: Path, tmp_path: Path) -> None:
    cache = FeatureCache(toy, tmp_path / "cache")
    picture = sorted((voc / "JPEGImages").iterdir())[0]
    pixels = read_image(picture)
    for flip in (False, True):
        expected = toy.features(np.ascontiguousarray(pixels[:, ::-1]) if flip else pixels).numpy()
        np.testing.assert_allclose(cache.features(picture, flip=flip), expected, rtol=1e-3, atol=1e-4)
    files = {path: path.stat().st_ino for path in cache.folder.glob("*.npy")}
    assert len(files) == 2 * len(SCALES)
    again = FeatureCache(toy, tmp_path / "cache").features(picture)
    np.testing.assert_array_equal(again, cache.features(picture))
    # One more scale is all that another choice of scales computes.
    FeatureCache(DenseScorer("toy", scales=(1.0, 2.3, 1.2)), tmp_path / "cache").features(picture)
    after = {path: path.stat().st_ino for path in cache.folder.glob("*.npy")}
    assert len(after) == len(files) + 1
    assert all(after[path] == node for path, node in files.items())


def test_another_network_context_or_picture_is_another_key(toy: DenseScorer, voc: Path, tmp_path: Path) -> None:
    first, second = sorted((voc / "JPEGImages").iterdir())[:2]
    FeatureCache(toy, tmp_path).features(first)
    module = Toy()
    with torch.no_grad():
        next(module.classifier.parameters()).mul_(1.5)  # FC6, which the engine packs
    other = DenseScorer(module, patch_size=20, scales=SCALES)
    for cache, picture in (
        (FeatureCache(toy, tmp_path), second),
        (FeatureCache(toy, tmp_path, context="patch"), first),
        (FeatureCache(other, tmp_path), first),
        (FeatureCache(DenseScorer("toy", scales=SCALES, mean=(0.1, 0.2, 0.3)), tmp_path), first),
    ):
        before = len(list(tmp_path.glob("*.npy")))
        cache.features(picture)
        assert len(list(tmp_path.glob("*.npy"))) == before + len(SCALES)


def test_the_cache_is_bounded_mends_damage_and_leaves_no_scraps(
    toy: DenseScorer, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = sorted((voc / "JPEGImages").iterdir())[:4]
    whole = FeatureCache(toy, tmp_path)
    expected = [whole.features(picture) for picture in pictures]
    most = sum(path.stat().st_size for path in tmp_path.glob("*.npy")) // 2
    small = FeatureCache(toy, tmp_path, max_bytes=most)
    small.features(sorted((voc / "JPEGImages").iterdir())[5])
    assert sum(path.stat().st_size for path in tmp_path.glob("*.npy")) <= most
    for path in tmp_path.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:100])
    for picture, features in zip(pictures, expected, strict=True):
        np.testing.assert_array_equal(small.features(picture), features)

    def interrupted(file: Path, features: NDArray[np.float16]) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    empty = FeatureCache(toy, tmp_path / "empty")
    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        empty.features(pictures[0])
    assert list(empty.folder.iterdir()) == []


def test_scores_from_cached_features_are_the_scorers(toy: DenseScorer, voc: Path, tmp_path: Path) -> None:
    image = load_boxed(voc, "val").images[0]
    direct, cached = toy.score(image.path), cached_scores(toy, FeatureCache(toy, tmp_path))(image)
    torch.testing.assert_close(cached.patch_scores, direct.patch_scores, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(cached.boxes, direct.boxes)
