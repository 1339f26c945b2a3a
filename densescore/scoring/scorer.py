"""The dense engine: the trunk once over each level, the head once over the cells of all levels."""

import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from densescore.errors import DensescoreError
from densescore.geometry import DEFAULT_MAX_CELLS, Level, Pyramid
from densescore.io.images import ImageLike, Pixels, file_of, level_pixels, read_image
from densescore.models import load_classifier
from densescore.models.registry import Weights
from densescore.models.weights import digest_of
from densescore.network.cpu.accelerate import Runtime, speed_up
from densescore.network.dense_network import DenseNetwork
from densescore.network.devices import find_device, find_dtype, to_channels_last
from densescore.results.patches import PatchFeatures
from densescore.results.scores import DenseScores
from densescore.scoring.arguments import Numbers, as_tuple, check_context, fit_labels
from densescore.scoring.batch import BATCH, HEAD_CELLS, find_batching, score_batch
from densescore.scoring.clock import Clock
from densescore.scoring.copies import Copies
from densescore.scoring.crop_batch import CropBatch
from densescore.scoring.crop_network import CropNetwork, PatchNetwork, dense_only, patch_network
from densescore.scoring.dense_pass import head_outputs, trunk_maps
from densescore.scoring.describe import describe_scorer
from densescore.scoring.fingerprint import Context, Stage, fingerprint
from densescore.scoring.finite import check_outputs, check_weights
from densescore.scoring.freed_memory import freed_memory
from densescore.scoring.normalize import normalize
from densescore.scoring.object_boxes import WithReduced, object_boxes, split_reduced
from densescore.scoring.out_of_memory import in_memory
from densescore.scoring.processes import check_process
from densescore.scoring.sliding_window import crop_batches
from densescore.scoring.staging import stage, staged_outputs
from densescore_kernels.power_mean.exponents import check_exponent


class DenseScorer(Copies):
    """Scores every patch of an image with one network.

    Args:
        model: a name (see ``densescore models``; also ``"timm:NAME"`` and ``"torchvision:NAME"``), the file of a
            trained adaptation head (``.safetensors``), or a classifier module that ends in flatten → linear or global
            average pooling → linear; with ``context="patch"``, any classifier module. A module is copied.
        weights: of a named model: ``"default"``, the path of a file, or None for random ones.
        labels: C class names, or a text file with one a line, instead of the model's own.
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
        dtype: ``"auto"`` (the module's own; float32 for named models), ``"float32"``, ``"bfloat16"`` (about half the
            time where the processor multiplies in it) or ``"float16"``. Probabilities are float32 whatever the dtype.
        runtime: what runs the trunk on a CPU: ``"torch"``, ``"openvino"`` (an extra), or ``"auto"``: OpenVINO for
            networks with depthwise or narrow grouped convolutions where it is installed, torch for all others
            (``benchmarks/results/runtimes.md`` has the times). Networks scored by crops alone may have ``"compile"``
            on any device: `torch.compile`, a minute at the start that pays on a CUDA device where thousands of crops
            follow. ``scorer.runtime`` and every result name what runs.
        max_cells: most patches that one image may have. It bounds memory, which grows with the largest level.
        context: what a patch sees past its own border where a call does not say; see `score`. ``"patch"`` also accepts
            networks that are not convolutional (ViT, Swin, Mixer, …), whose patches are scored crop by crop only. By
            default ``"image"``, or ``"patch"`` for a head that was trained on such a network.

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
        labels: Sequence[str] | str | os.PathLike[str] | None = None,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        patch_size: int | None = None,
        scales: Numbers | None = None,
        patch_sizes: Numbers | None = None,
        stride: int | None = None,
        k: float | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        runtime: Runtime = "auto",
        max_cells: int = DEFAULT_MAX_CELLS,
        context: Context | None = None,
    ) -> None:
        check_process()
        if runtime not in get_args(Runtime):
            raise DensescoreError(f"runtime must be one of {', '.join(get_args(Runtime))}, got {runtime!r}")
        if not isinstance(labels, str | os.PathLike):
            labels = as_tuple("labels", labels)
        mean, std = as_tuple("mean", mean), as_tuple("std", std)
        classifier = load_classifier(model, weights=weights, labels=labels, mean=mean, std=std, patch_size=patch_size)
        check_context(context, (None, *get_args(Context)))
        by_crops = context == "patch" or (context is None and classifier.by_crops)
        network = patch_network(classifier.module, classifier.patch_size, by_crops=by_crops)
        self.context: Context = context or ("image" if "image" in network.contexts else "patch")
        check_context(self.context, network.contexts)
        # Before the weights are packed, after which they cannot be read.
        self.weights_digest = self.backbone_digest = digest_of(*network.below_classifier)
        classifier.check_backbone(self.backbone_digest)
        if classifier.head is not None:
            head = classifier.head
            network.replace_classifier(head, head.fca.in_features, head.fcb.out_features)
        if stride not in (None, network.stride):
            network.make_finer(stride)
        self.name = classifier.name
        self.labels = fit_labels(classifier.labels, network.classes, given=labels is not None)
        k = classifier.k if k is None else k
        self.activation = classifier.activation
        self.scales = classifier.scales if scales is None else as_tuple("scales", scales)
        self.patch_sizes = as_tuple("patch_sizes", patch_sizes)
        self.k, self.max_cells = check_exponent(k), max_cells
        self.device = find_device(device)
        self.dtype = find_dtype(dtype, network, self.device)
        self.network: PatchNetwork = to_channels_last(network.to(self.device, self.dtype))
        check_weights(self.network, self.name)
        self.mean, self.std = classifier.mean, classifier.std
        self.batching = find_batching(network, self.device)
        self.pyramid(224, 224)  # scales are checked now, not at the first image
        self._crop_batch = CropBatch(self.network.patch, self.device)
        self.box_layer = None if classifier.box_layer is None else classifier.box_layer.to(self.device)
        self.classifier_digest = digest_of(network.classifier, *([] if self.box_layer is None else [self.box_layer]))
        if isinstance(network, CropNetwork):
            self.runtime = network.use_runtime(runtime)
        elif runtime == "compile":
            raise DensescoreError("runtime 'compile' is for networks that are scored by crops alone")
        else:
            self.runtime = speed_up(network, runtime) if self.device.type == "cpu" else "torch"
        if self.device.type == "cpu":
            del classifier, network
            gc.collect()  # the traced module is a cycle, and still holds the weights that were packed

    @property
    def dense(self) -> DenseNetwork:
        """The network, where it is convolutional.

        Raises:
            DensescoreError: it is scored by crops.
        """
        return dense_only(self.network, "this")

    def pyramid(self, height: int, width: int, max_cells: int | None = None) -> Pyramid:
        """The patches that an image of this size has; rows of `score` and `features` come in its order."""
        return Pyramid.of(
            height, width, scales=self.scales, patch_sizes=self.patch_sizes,
            patch=self.network.patch, stride=self.network.stride, phases=self.network.phases,
            max_cells=self.max_cells if max_cells is None else max_cells,
        )  # fmt: skip

    def fingerprint(self, of: Stage = "image scores", *, context: Context | None = None) -> dict[str, Any]:
        """What a result follows from besides the image, as JSON values by the options' names.

        Args:
            of: ``"features"``: of one level; the same for all heads and scales. ``"patch scores"``: with the classifier
                and the scales. ``"image scores"``: with k, the labels and the bound on patches, too.
            context: as for `score`.
        """
        return fingerprint(self, of, self._context(context))

    def score(self, image: ImageLike, *, context: Context | None = None) -> DenseScores:
        """Score every patch of an image.

        Args:
            image: a path, encoded bytes, a file object, a PIL image, an array or a tensor; see `read_image`.
            context: what a patch sees past its own border. ``"image"``: the real image (one dense pass).
                ``"patch"``: zeros, as in the paper's crops; each patch is cut out and run on its own, in batches.
                By default the scorer's own.

        Raises:
            DensescoreError: the image cannot be read, has too many patches, or features or scores are not finite.
        """
        context, clock = self._context(context), Clock(self.device)
        pixels = read_image(image)
        clock.lap("decode")
        pyramid, outputs, retried = self._run(pixels, context, self.with_reduced, clock)
        logits, reduced = split_reduced(self.box_layer, outputs)
        return self.scores_of(
            self.probabilities(logits), reduced, pyramid, context,
            timings=clock.timings, retried=retried, source=file_of(image) or pixels,
        )  # fmt: skip

    __call__ = score

    def score_batch(self, images: Sequence[ImageLike], *, context: Context | None = None) -> list[DenseScores]:
        """Score several images in one pass, where that takes less time than one after another; see `batch_size`.

        The scores equal those of `score`, to rounding. They hold the paths of files, but no pixels.

        Args:
            images: as for `score`, in any sizes.
            context: as for `score`.

        Raises:
            DensescoreError: as for `score`, for any of the images; `score_many` goes on with the others.
        """
        if self._context(context) == "image" and self.batching and len(images) > 1:
            found: Iterable[DenseScores] = score_batch(self, [read_image(image) for image in images])
        else:
            found = (self.score(image, context=context) for image in images)
        return [replace(scores, source=file_of(image)) for image, scores in zip(images, found, strict=True)]

    @property
    def batch_size(self) -> int:
        """How many images `score_many` scores in one pass; 1 where a pass over several takes as long as they do."""
        if self.context != "image" or self.batching is None:
            return 1
        if self.batching == "canvases":
            return BATCH
        # Past so many cells the head multiplies as fast as it can.
        return 1 if self.patch_sizes else min(BATCH, -(-HEAD_CELLS // len(self.pyramid(300, 400, max_cells=10**9))))

    def score_features(
        self, features: Tensor, height: int, width: int, *, context: Context | None = None
    ) -> DenseScores:
        """Score patches whose features are known: what is left of `score` after `features`.

        Args:
            features: ``[M, D]``, of any float dtype, as `features` gave them for an image of this size.
            height: of the image in pixels.
            width: of the image in pixels.
            context: with which the features were made.
        """
        with torch.inference_mode():
            outputs = self.with_reduced(features.to(self.device, self.dtype))
        logits, reduced = split_reduced(self.box_layer, outputs)
        return self.scores_of(self.probabilities(logits), reduced, self.pyramid(height, width), self._context(context))

    @property
    def with_reduced(self) -> nn.Module:
        """The classifier, and beside its outputs what the box layer looks at, if there is one; see `split_reduced`."""
        network = self.network
        if self.box_layer is None:
            return network.classifier
        return WithReduced(network.classifier, network.to_features, self.box_layer)

    def scores_of(
        self, probabilities: Tensor, reduced: Tensor, pyramid: Pyramid, context: Context, **found: Any
    ) -> DenseScores:
        """The result for probabilities ``[M, C]`` and what the box layer looks at; `found` are further fields of it."""
        return DenseScores(
            probabilities, self.labels, pyramid,
            k=self.k, model=self.name, context=context, runtime=self.runtime,
            object_boxes=object_boxes(self.box_layer, reduced, probabilities, pyramid), **found,
        )  # fmt: skip

    def probabilities(self, outputs: Tensor) -> Tensor:
        """The classifier's outputs as probabilities, float32 ``[M, C]``; outputs that are not finite are an error."""
        outputs = check_outputs(outputs, f"{self.name}: the scores").float()
        return outputs.sigmoid() if self.activation == "sigmoid" else outputs.softmax(1)

    def score_maps(self, maps: Sequence[Tensor], levels: Sequence[Level]) -> Tensor:
        """Score cells whose maps are known: the last part of `score`, for levels that come in parts.

        Args:
            maps: per level, what ``network.fast_trunk`` gave: ``[phases², C, rows + h - 1, cols + w - 1]``.
            levels: grids of cells, numbered from 0 on.

        Returns:
            Probabilities, float32 ``[M, C]``.
        """
        for feature_map in maps:
            check_outputs(feature_map, f"{self.name}: the trunk's features")
        with torch.inference_mode():
            network = self.dense
            return self.probabilities(head_outputs(network, network.classifier, maps, levels))

    def features(self, image: ImageLike, *, context: Context | None = None) -> Tensor:
        """FC7's output, or the pooled map, of every patch: the transferable mid-level representation.

        Args:
            image: as for `score`.
            context: as for `score`.

        Returns:
            ``[M, D]`` in the scorer's dtype, in the order of `score`'s rows.
        """
        return self.patches(image, context=context).features

    def patches(self, image: ImageLike, *, context: Context | None = None) -> PatchFeatures:
        """The features of every patch, as `features` gives them, with the patches' boxes.

        Args:
            image: as for `score`.
            context: as for `score`.

        Example:
            >>> scorer = DenseScorer("lite0", scales=(1, 2))
            >>> scorer.patches(torch.zeros(3, 240, 320))
            PatchFeatures(108 patches of a 240×320 image at scales 1, 2, 1,280 features each)
        """
        pixels, clock = read_image(image), Clock(self.device)
        pyramid, features, _ = self._run(pixels, self._context(context), self.network.to_features, clock)
        features = check_outputs(features, f"{self.name}: the features").flatten(1).clone()  # a user may train on it
        return PatchFeatures(features, pyramid)

    def __repr__(self) -> str:
        return f"DenseScorer({describe_scorer(self)})"

    def _context(self, context: Context | None) -> Context:
        """The context of a call: the scorer's own where the call does not say."""
        if context is None:
            return self.context
        check_context(context, self.network.contexts)
        return context

    def _run(
        self, pixels: Pixels, context: Context, classifier: nn.Module, clock: Clock
    ) -> tuple[Pyramid, Tensor, bool]:
        """Everything but the softmax: `classifier`'s output for each patch, ``[M, …]``.

        Where memory runs out, the image is scored once more in smaller parts; the last value says so.
        """
        pyramid = self.pyramid(*pixels.shape[:2])
        size = f"an image of {pyramid.height}×{pyramid.width} pixels with {len(pyramid):,} patches"
        if context == "patch":
            outputs, retried = self._crop_batch.run(
                lambda batch: self._crop_outputs(pixels, pyramid, classifier, clock, batch), size
            )
        else:
            outputs, parts = in_memory(lambda parts: self._outputs(pixels, pyramid, classifier, clock, parts), size)
            retried = parts > 1
        if self.device.type == "cpu":
            freed_memory.after_image()
        return pyramid, outputs, retried

    @torch.inference_mode()
    def _outputs(self, pixels: Pixels, pyramid: Pyramid, classifier: nn.Module, clock: Clock, parts: int) -> Tensor:
        """`_run` in one dense pass; with `parts`, in about so many times smaller pieces."""
        network = self.dense
        if self.batching == "canvases" and parts == 1:
            staged = stage(self, [pixels])
            clock.lap("pyramid")
            return staged_outputs(self, staged, classifier, clock)
        maps = trunk_maps(network, self.levels(pixels, pyramid, clock), clock, parts)
        return head_outputs(network, classifier, maps, pyramid.levels, clock, parts)

    @torch.inference_mode()
    def _crop_outputs(
        self, pixels: Pixels, pyramid: Pyramid, classifier: nn.Module, clock: Clock, batch: int
    ) -> Tensor:
        """`_run` crop by crop, `batch` crops at a time."""
        crops = crop_batches(self.levels(pixels, pyramid, clock), pyramid, batch)
        outputs = torch.cat([classifier(self.network.embed_crops(some)) for some in crops])
        clock.lap("crops")
        return outputs

    def levels(self, pixels: Pixels, pyramid: Pyramid, clock: Clock) -> Iterator[Tensor]:
        """The levels, normalized, one after another: ``[1, 3, h, w]``, channels last."""
        for level in pyramid.levels:
            tensor = self.level(pixels, pyramid, level)
            clock.lap("pyramid")
            yield tensor

    def level(self, pixels: Pixels, pyramid: Pyramid, level: Level) -> Tensor:
        """One level as the network takes it, resized, padded and normalized: ``[1, 3, P + nS, P + mS]``."""
        return self.normalize(level_pixels(pixels, pyramid, level))

    def normalize(self, pixels: Pixels) -> Tensor:
        """RGB ``[h, w, 3]`` as the network takes it: ``[1, 3, h, w]``, channels last."""
        check_process()  # what is made from pixels elsewhere, tile by tile, comes by here
        return normalize(pixels, self.mean, self.std, self.device, self.dtype)
