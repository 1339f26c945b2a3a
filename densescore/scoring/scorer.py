"""The dense engine: the trunk once over each level, the head once over the cells of all levels."""

import gc
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from densescore.errors import DensescoreError
from densescore.geometry import DEFAULT_MAX_CELLS, Level, Pyramid
from densescore.io.images import ImageLike, Pixels, level_pixels, read_image
from densescore.models import load_classifier
from densescore.models.registry import Weights
from densescore.models.weights import digest_of
from densescore.network.cpu.accelerate import Runtime, speed_up
from densescore.network.cpu.quantize import check_int8, quantize_network
from densescore.network.devices import find_device, find_dtype
from densescore.network.surgery import to_dense
from densescore.network.tiling import trunk_over
from densescore.results.scores import DenseScores
from densescore.scoring.cell_batches import cell_batches
from densescore.scoring.out_of_memory import in_memory
from densescore.scoring.sliding_window import crop_batches

Context = Literal["image", "patch"]

HEAD_BYTES = 96 * 2**20
"""Memory that the windows and the head's outputs of one product may take; the cells per product follow from it."""

CROP_BATCH = 64
"""Crops per forward pass in ``context="patch"``."""


class DenseScorer:
    """Scores every patch of an image with one network.

    Args:
        model: a name (see ``densescore models``), the file of a trained adaptation head (``.safetensors``), or any
            classifier module that ends in flatten → linear or global average pooling → linear; a module is copied.
        weights: of a named model: ``"default"``, the path of a file, or None for random ones.
        labels: C class names, instead of the model's own.
        mean: three numbers, subtracted from pixels in [0, 1], instead of the model's own.
        std: three numbers, divided by, instead of the model's own.
        patch_size: P, side of the network's input in pixels, instead of the model's own.
        scales: λ per level: the short side of the image over the side of a patch. By default the paper's
            nine (`PAPER_SCALES`), its first six for lite0, or those that a trained head was made for.
        patch_sizes: sides of the patches in image pixels, instead of `scales`.
        stride: pixels of a level from one patch to the next, instead of the network's own (32): half, a quarter, … of
            it, for that many more patches down and across; see `densescore.network.finer_stride`.
        k: exponent of the image score, at least 1. By default 5, or what a trained head is best with.
        device: ``"auto"`` (a CUDA device if there is one), ``"cpu"``, ``"cuda:1"``, …
        dtype: ``"auto"`` (the module's own; float32 for named models), ``"float32"``, ``"bfloat16"``, ``"float16"``, or
            ``"int8"``: float32 with the layers' products in eight bits, on a CPU, for scores that differ by a little.
            Probabilities are float32 whatever the dtype.
        calibration: for ``dtype="int8"``, a few images like those to come: what they give sets the layers' ranges.
        runtime: what runs the trunk on a CPU: ``"torch"``, ``"openvino"`` (an extra), or ``"auto"``: OpenVINO where it
            is installed and, timed once here, faster by a fifth. ``scorer.runtime`` and every result name what runs.
        max_cells: most patches that one image may have. It bounds memory, which grows with the largest level.

    Raises:
        DensescoreError: an argument that does not fit, or a module that is not convolutional.

    Example:
        >>> scorer = DenseScorer("lite0", scales=(1, 2))
        >>> scores = scorer.score(torch.zeros(3, 240, 320))
        >>> tuple(scores.patch_scores.shape), tuple(scores.boxes.shape)
        ((108, 1000), (108, 4))
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module = "lite0",
        *,
        weights: Weights = "default",
        labels: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        patch_size: int | None = None,
        scales: Sequence[float] | None = None,
        patch_sizes: Sequence[float] | None = None,
        stride: int | None = None,
        k: float | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        calibration: Sequence[ImageLike] = (),
        runtime: Runtime = "auto",
        max_cells: int = DEFAULT_MAX_CELLS,
    ) -> None:
        if runtime not in get_args(Runtime):
            raise DensescoreError(f"runtime must be one of {', '.join(get_args(Runtime))}, got {runtime!r}")
        classifier = load_classifier(model, weights=weights, labels=labels, mean=mean, std=std, patch_size=patch_size)
        network = to_dense(classifier.module, classifier.patch_size)
        if classifier.head is not None:
            head = classifier.head
            network.replace_classifier(head, head.fca.in_features, head.fcb.out_features)
        if stride not in (None, network.stride):
            network.make_finer(stride)
        self.name = classifier.name
        self.labels = _fit_labels(classifier.labels, network.classes, given=labels is not None)
        k = classifier.k if k is None else k
        if not (math.isfinite(k) and k >= 1):
            raise DensescoreError(f"k must be a finite number of at least 1, got {k}")
        self.activation = classifier.activation
        self.scales = classifier.scales if scales is None else tuple(scales)
        self.patch_sizes = None if patch_sizes is None else tuple(patch_sizes)
        self.k, self.max_cells = float(k), max_cells
        self.device = find_device(device)
        if dtype == "int8":
            check_int8(network, self.device, calibration, runtime)
        self.dtype = find_dtype("float32" if dtype == "int8" else dtype, network, self.device)
        self.network = network.to(self.device, self.dtype).to(memory_format=torch.channels_last)
        self.mean, self.std = classifier.mean, classifier.std
        self.pyramid(224, 224)  # scales are checked now, not at the first image
        # Of all that features follow from; before the weights are packed, after which they cannot be read.
        self.weights_digest = digest_of(network.trunk, network.project, network.embed)
        self.classifier_digest = digest_of(network.classifier)
        if dtype == "int8":
            grids = quantize_network(self.network, (level for image in calibration for level in self._levels_of(image)))
            self.weights_digest = hashlib.sha256(f"{self.weights_digest} {grids}".encode()).hexdigest()
            self.runtime = "torch"
        else:
            self.runtime = speed_up(self.network, runtime) if self.device.type == "cpu" else "torch"
        if self.device.type == "cpu":
            del classifier, network
            gc.collect()  # the traced module is a cycle, and still holds the weights that were packed

    def pyramid(self, height: int, width: int, max_cells: int | None = None) -> Pyramid:
        """The patches that an image of this size has; rows of `score` and `features` come in its order."""
        return Pyramid.of(
            height,
            width,
            scales=self.scales,
            patch_sizes=self.patch_sizes,
            patch=self.network.patch,
            stride=self.network.stride,
            phases=self.network.phases,
            max_cells=self.max_cells if max_cells is None else max_cells,
        )

    def score(self, image: ImageLike, *, context: Context = "image") -> DenseScores:
        """Score every patch of an image.

        Args:
            image: a path, encoded bytes, a file object, a PIL image, an array or a tensor; see `read_image`.
            context: what a patch sees past its own border. ``"image"``: the real image (one dense pass).
                ``"patch"``: zeros, as in the paper's crops; each patch is cut out and run on its own, in batches.

        Raises:
            DensescoreError: the image cannot be read, has too many patches, or the scores are not finite.
        """
        timings: dict[str, float] = {}
        pyramid, outputs, retried = self._run(image, context, self.network.classifier, timings)
        return self._scores(outputs, pyramid, context, timings, retried)

    def score_features(self, features: Tensor, height: int, width: int, *, context: Context = "image") -> DenseScores:
        """Score patches whose features are known: what is left of `score` after `features`.

        Args:
            features: ``[M, D]``, of any float dtype, as `features` gave them for an image of this size.
            height: of the image in pixels.
            width: of the image in pixels.
            context: with which the features were made.
        """
        with torch.inference_mode():
            outputs = self.network.classifier(features.to(self.device, self.dtype))
        return self._scores(outputs, self.pyramid(height, width), context, {})

    def _scores(
        self, outputs: Tensor, pyramid: Pyramid, context: Context, timings: dict[str, float], retried: bool = False
    ) -> DenseScores:
        return DenseScores(
            self._probabilities(outputs),
            self.labels,
            pyramid,
            self.k,
            self.name,
            context,
            self.runtime,
            timings,
            retried,
        )

    def _probabilities(self, outputs: Tensor) -> Tensor:
        probabilities = outputs.float().sigmoid() if self.activation == "sigmoid" else outputs.float().softmax(1)
        if not torch.isfinite(probabilities).all():
            raise DensescoreError(f"{self.name} in {self.dtype} gave scores that are not finite; try another dtype")
        return probabilities

    def score_maps(self, maps: Sequence[Tensor], levels: Sequence[Level]) -> Tensor:
        """Score cells whose maps are known: the last part of `score`, for levels that come in parts.

        Args:
            maps: per level, what ``network.fast_trunk`` gave: ``[phases², C, rows + h - 1, cols + w - 1]``.
            levels: grids of cells, numbered from 0 on.

        Returns:
            Probabilities, float32 ``[M, C]``.
        """
        with torch.inference_mode():
            return self._probabilities(self._head(maps, levels, self.network.classifier))

    def features(self, image: ImageLike, *, context: Context = "image") -> Tensor:
        """FC7's output, or the pooled map, of every patch: the transferable mid-level representation.

        Args:
            image: as for `score`.
            context: as for `score`.

        Returns:
            ``[M, D]`` in the scorer's dtype, in the order of `score`'s rows.
        """
        return self._run(image, context, self.network.to_features, {})[1].flatten(1).clone()  # a user may train on it

    def _run(
        self, image: ImageLike, context: Context, classifier: nn.Module, timings: dict[str, float]
    ) -> tuple[Pyramid, Tensor, bool]:
        """Everything but the softmax: `classifier`'s output for each patch, ``[M, …]``.

        Where memory runs out, the image is scored once more in smaller parts; the last value says so.
        """
        if context not in ("image", "patch"):
            raise DensescoreError(f"context must be 'image' or 'patch', got {context!r}")
        clock = _Clock(self.device, timings)
        pixels = read_image(image)
        pyramid = self.pyramid(*pixels.shape[:2])
        clock.lap("decode")
        size = f"an image of {pyramid.height}×{pyramid.width} pixels with {len(pyramid):,} patches"
        outputs, parts = in_memory(
            lambda parts: self._outputs(pixels, pyramid, context, classifier, clock, parts), size
        )
        return pyramid, outputs, parts > 1

    def _outputs(
        self, pixels: Pixels, pyramid: Pyramid, context: Context, classifier: nn.Module, clock: "_Clock", parts: int
    ) -> Tensor:
        """`_run` in one go; with `parts`, in about so many times smaller pieces."""
        with torch.inference_mode():
            levels = self._levels(pixels, pyramid, clock)
            if context == "patch":
                crops = crop_batches(levels, pyramid, CROP_BATCH // parts)
                outputs = torch.cat([classifier(self.network.embed_crops(batch)) for batch in crops])
                clock.lap("crops")
                return outputs
            return self._head(self._maps(levels, clock, parts), pyramid.levels, classifier, clock, parts)

    def _head(
        self,
        maps: Iterable[Tensor],
        levels: Sequence[Level],
        classifier: nn.Module,
        clock: "_Clock | None" = None,
        parts: int = 1,
    ) -> Tensor:
        """`classifier`'s output for the cells of levels, in order."""
        batches = []
        for blocks in cell_batches(maps, levels, self.network, HEAD_BYTES // parts):
            batches.append(classifier(self.network.embed_blocks(blocks)))
            if clock:
                clock.lap("head")
        outputs = torch.cat(batches)
        if self.network.phases == 1:
            return outputs
        cells = [phase.ravel() for level in levels for phase in level.phases(self.network.phases)]
        return outputs[torch.from_numpy(np.argsort(np.concatenate(cells))).to(outputs.device)]

    def _levels(self, pixels: Pixels, pyramid: Pyramid, clock: "_Clock") -> Iterator[Tensor]:
        """The levels, normalized, one after another: ``[1, 3, h, w]``, channels last."""
        for level in pyramid.levels:
            tensor = self.level(pixels, pyramid, level)
            clock.lap("pyramid")
            yield tensor

    def _maps(self, levels: Iterator[Tensor], clock: "_Clock", parts: int) -> Iterator[Tensor]:
        """The trunk's map of each level, ``[phases², C, h, w]``; of a large one, or with `parts`, from tiles of it."""
        for level in levels:
            feature_map = trunk_over(self.network, level, parts)
            clock.lap("trunk")
            yield feature_map

    def _levels_of(self, image: ImageLike) -> Iterator[Tensor]:
        pixels = read_image(image)
        pyramid = self.pyramid(*pixels.shape[:2])
        return (self.level(pixels, pyramid, level) for level in pyramid.levels)

    def level(self, pixels: Pixels, pyramid: Pyramid, level: Level) -> Tensor:
        """One level as the network takes it, resized, padded and normalized: ``[1, 3, P + nS, P + mS]``."""
        return self.normalize(level_pixels(pixels, pyramid, level))

    def normalize(self, pixels: Pixels) -> Tensor:
        """RGB ``[h, w, 3]`` as the network takes it: ``[1, 3, h, w]``, channels last."""
        # By numpy and OpenCV: torch's threads would go on spinning for a while, in the way of the trunk's.
        if pixels.dtype != np.uint8:
            scaled = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
            return torch.from_numpy(scaled).permute(2, 0, 1)[None].to(self.device, self.dtype)
        # A byte of a channel becomes one of 256 numbers, of which OpenCV knows only the bits where they are halves.
        table = ((torch.arange(256)[:, None] / 255 - torch.tensor(self.mean)) / torch.tensor(self.std)).to(self.dtype)
        bits = table.view(torch.int16) if table.itemsize == 2 else table  # [256, 3]
        values = torch.from_numpy(cv2.LUT(pixels, bits.numpy()[None])).view(self.dtype)  # [h, w, 3]
        return values.permute(2, 0, 1)[None].to(self.device)


class _Clock:
    """Seconds per stage, added up; waits for the device, whose work is queued."""

    def __init__(self, device: torch.device, timings: dict[str, float]) -> None:
        self._synchronize: Callable[[], Any] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self._timings = timings
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        self._synchronize()
        now = time.perf_counter()
        self._timings[stage] = self._timings.get(stage, 0.0) + now - self._last
        self._last = now


def _fit_labels(labels: tuple[str, ...], classes: int, given: bool) -> tuple[str, ...]:
    if len(labels) == classes:
        return labels
    if given:
        raise DensescoreError(f"labels: got {len(labels)} names for a network of {classes} classes")
    return tuple(f"class {index}" for index in range(classes))
