"""Features of every patch of an image, computed once and cached on disk."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.io.files import atomic_write, clear_scratch
from densescore.io.images import Pixels, read_image
from densescore.io.names import to_json
from densescore.network.cpu.form_cache import cache_folder
from densescore.scoring.scorer import Context, DenseScorer

DEFAULT_CACHE = cache_folder() / "features"
DEFAULT_BYTES = 20 * 10**9
"""Quota of a cache: about 3,000 VOC photographs at the paper's scales with lite0 (6.5 MB each)."""

_VERSION = 1  # raise it when the engine's features change for the same key
_FLOAT16_MAX = 65504
_NAME = re.compile(r"[0-9a-f]{64}\.npy")  # cached files; others in the folder are not counted, and never deleted


class FeatureCache:
    """A cache of patch features: float16 features of a level of an image, or of its mirror image, per ``.npy`` file.

    A file's name is a digest of everything that determines its content: the trunk's weights, the preprocessing, the
    scale, context, dtype, the image's bytes, mirrored or not. So files never go stale, any number of trainings may
    share a cache, and new scales compute only the new levels. Files are written whole or not at all.

    Args:
        scorer: scorer that computes missing features.
        folder: folder of the files.
        max_bytes: quota of all files together; beyond it, the least recently used files are deleted, except the newest.
        context: as in `DenseScorer.score`.

    Raises:
        DensescoreError: the folder cannot be made, or written to.

    Example:
        >>> cache = FeatureCache(scorer, "features")  # doctest: +SKIP
        >>> cache.features(Path("cat.jpg")).shape  # doctest: +SKIP
        (537, 1280)
    """

    def __init__(
        self,
        scorer: DenseScorer,
        folder: str | os.PathLike[str] = DEFAULT_CACHE,
        *,
        max_bytes: int = DEFAULT_BYTES,
        context: Context | None = None,
    ) -> None:
        self.scorer, self.folder, self.max_bytes = scorer, Path(folder), max_bytes
        self.context: Context = context or scorer.context
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise DensescoreError(f"{self.folder}: the cache cannot be written: {error.strerror}") from error
        self._maker: dict[str, Any] = {
            "version": _VERSION,
            "absolute": scorer.patch_sizes is not None,
            **scorer.fingerprint("features", context=self.context),
        }
        clear_scratch(self.folder)
        self._sizes = {file: file.stat().st_size for file in self._by_age()}

    def at_scales(self, scales: tuple[float, ...]) -> "FeatureCache":
        """The cache of the same scorer at other scales, in the same folder."""
        if scales == self.scorer.scales:
            return self
        scorer = self.scorer.with_scales(scales)
        return FeatureCache(scorer, self.folder, max_bytes=self.max_bytes, context=self.context)

    def features(self, image: Path, *, flip: bool = False) -> NDArray[np.float16]:
        """Features of every patch of an image, from the cache or computed now.

        Args:
            image: file of the picture.
            flip: features of the mirror image's patches.

        Returns:
            float16 ``[M, D]``, rows in the order of ``scorer.pyramid(height, width).boxes()``.

        Raises:
            DensescoreError: the picture cannot be read.
        """
        scales = self.scorer.patch_sizes or self.scorer.scales
        paths = self._paths(image, flip)
        levels = [_load(path) for path in paths]
        missing = [index for index, features in enumerate(levels) if features is None]
        if missing:
            pixels = read_image(image)
            pixels = np.ascontiguousarray(pixels[:, ::-1]) if flip else pixels
            computed = self._compute(pixels, [scales[index] for index in missing])
            for index, features in zip(missing, computed, strict=True):
                levels[index] = features
                self._store(paths[index], features)
        return np.concatenate([features for features in levels if features is not None])

    def check_pictures(self, images: Iterable[Path]) -> None:
        """Decode the pictures without cached features, which is fast, before features are computed, which is slow.

        Raises:
            DensescoreError: some cannot be read: all of them, with their reasons.
        """
        problems = list[str]()
        for image in images:
            try:
                if not all(path.exists() for path in self._paths(image)):
                    read_image(image)
            except DensescoreError as error:
                problems.append(str(error))
        if problems:
            header = [f"{len(problems)} pictures cannot be read:"] if len(problems) > 1 else []
            raise DensescoreError("\n  ".join([*header, *problems]))

    def _paths(self, image: Path, flip: bool = False) -> list[Path]:
        """Files of an image's features, one per scale."""
        try:
            digest = hashlib.sha256(image.read_bytes()).hexdigest()
        except OSError as error:
            raise DensescoreError(f"{image}: cannot be read: {error.strerror}") from error
        keys = [
            {**self._maker, "scale": float(scale), "image": digest, "flip": flip}
            for scale in self.scorer.patch_sizes or self.scorer.scales
        ]
        names = [hashlib.sha256(to_json(key, sort_keys=True).encode()).hexdigest() for key in keys]
        return [self.folder / f"{name}.npy" for name in names]

    def _compute(self, pixels: Pixels, scales: Sequence[float]) -> list[NDArray[np.float16]]:
        """Features of missing levels, in one pass."""
        relative = self.scorer.patch_sizes is None
        scorer = self.scorer.with_scales(scales) if relative else self.scorer.with_scales(patch_sizes=scales)
        features = scorer.features(pixels, context=self.context).float().cpu().numpy()
        rounded = np.clip(features, -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16)
        return [rounded[level.cells] for level in scorer.pyramid(*pixels.shape[:2]).levels]

    def _store(self, path: Path, features: NDArray[np.float16]) -> None:
        with atomic_write(path, overwrite=True, sweep=False) as temporary:
            np.save(temporary, features)
        self._sizes[path] = path.stat().st_size
        self._shrink(keep=path)

    def _by_age(self) -> list[Path]:
        files = [file for file in self.folder.glob("*.npy") if _NAME.fullmatch(file.name)]
        return sorted(files, key=lambda file: file.stat().st_mtime)

    def _shrink(self, keep: Path) -> None:
        if sum(self._sizes.values()) <= self.max_bytes:
            return
        # Other processes may have read and written
        self._sizes = {file: file.stat().st_size for file in self._by_age()}
        total = sum(self._sizes.values())
        for file in [file for file in self._sizes if file != keep]:
            if total <= self.max_bytes:
                break
            file.unlink(missing_ok=True)
            total -= self._sizes.pop(file)


def _load(path: Path) -> NDArray[np.float16] | None:
    """Features in a file, which is marked as just used; None if it is absent or damaged."""
    try:
        features: NDArray[np.float16] = np.load(path, allow_pickle=False)
        os.utime(path)
    except (ValueError, OSError, EOFError):
        return None
    return features
