"""`DenseScorer`: a network, its preprocessing, scales and labels; from an image to `DenseScores`."""

import copy
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import accumulate
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Self

from densescore.errors import DensescoreError
from densescore.geometry import DEFAULT_MAX_CELLS, Level, Pyramid
from densescore.io.images import ImageLike, Pixels, file_of, level_pixels, read_image
from densescore.models.registry import Weights, load_classifier
from densescore.models.weights import digest_of
from densescore.network import make_network
from densescore.network.cpu.accelerate import Runtime, accelerated
from densescore.network.cpu.form_cache import FormCache
from densescore.network.crops import CropNetwork, PatchNetwork, dense_only
from densescore.network.dense_network import DenseNetwork, find_device, find_dtype, to_channels_last
from densescore.network.gpu.accelerate import accelerated_on_gpu
from densescore.results.patches import PatchFeatures
from densescore.results.scores import DenseScores
from densescore.scoring import batching, checks, engine
from densescore.scoring.checks import Numbers, OutputsCheck, as_tuple, check_outputs
from densescore.scoring.engine import Clock, Head
from densescore.scoring.memory import PARTS, CropBatch, freed_memory, is_out_of_memory, retry_smaller
from densescore_kernels import power_mean
from densescore_kernels.checks import check_exponent

Context = Literal["image", "patch"]

Stage = Literal["features", "patch scores", "image scores"]


class Launched(NamedTuple):
    """Scores that a device may still compute: only `read` waits for it, once for all of them."""

    scores: list[DenseScores]
    clock: Clock
    check: OutputsCheck

    def read(self) -> list[DenseScores]:
        """The scores, with their timings; if any is not finite, an error."""
        self.check.read()
        for stage, seconds in self.clock.timings().items():
            for each in self.scores:
                each.timings[stage] = seconds / len(self.scores)
        return self.scores


class DenseScorer:
    """Scores every patch of an image with one network.

    A scorer may be used from any number of threads, copied, and pickled if it was made from a name or a file.

    Args:
        model: a name (see ``densescore models``; also ``"timm:NAME"`` and ``"torchvision:NAME"``), the file of a
            trained adaptation head (``.safetensors``), or a classifier module that ends in flatten → linear or global
            average pooling → linear; with ``context="patch"``, any classifier module. A module is copied.
        weights: weights of a named model: ``"default"``, the path of a file, or None for random ones.
        labels: C class names, or a text file with one name per line. Default: the model's own.
        mean: three numbers that are subtracted from pixels in [0, 1]. Default: the model's own.
        std: three numbers that the difference is divided by. Default: the model's own.
        patch_size: P, side of the network's input in pixels. Default: the model's own.
        scales: λ per level: the short side of the image over the side of a patch. Default: the paper's nine
            (`PAPER_SCALES`), the first six of them for lite0, or the scales that a trained head was made for.
        patch_sizes: sides of the patches in image pixels, instead of `scales`.
        stride: pixels of a level from one patch to the next. Default: the network's own (32). Half, a quarter, … of it
            gives that many more patches down and across; see `densescore.network.strides`.
        k: exponent of the image score, at least 1. Default: 5, or the best exponent of a trained head.
        device: ``"auto"`` (a CUDA device, else Apple's GPU, else the CPU), ``"cpu"``, ``"cuda:1"``, ``"mps"``, …
        dtype: ``"auto"`` (the module's own; float32 for named models), ``"float32"``, ``"bfloat16"`` (about half the
            time on processors that multiply in it) or ``"float16"``. Probabilities are always float32.
        runtime: runtime of the trunk on a CPU: ``"torch"``, ``"openvino"`` (an extra), or ``"auto"``: OpenVINO, where
            installed, for networks with depthwise or narrow grouped convolutions, torch for all others
            (``benchmarks/results/runtimes.md`` has the times). Networks scored by crops alone may have ``"compile"``
            on any device: `torch.compile`, a minute at the start that pays on a CUDA device for thousands of crops.
            ``scorer.runtime`` and every result name the runtime in use.
        max_cells: maximum number of patches per image. It bounds memory, which grows with the largest level.
        threshold: probability from which the answer is yes, and below it no; the model's own thresholds by default.
        context: default context of a patch; see `score`. ``"patch"`` also accepts networks that are not convolutional
            (ViT, Swin, Mixer, …), whose patches are scored crop by crop only. Default: ``"image"``, or ``"patch"`` for
            a head that was trained on such a network.

    Raises:
        DensescoreError: an argument is invalid, or the module is not convolutional.

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
        threshold: float | None = None,
    ) -> None:
        # Arguments for `__reduce__`; a module cannot be one, and would keep its weights in memory
        arguments = dict(locals())
        del arguments["self"]
        self._arguments: dict[str, Any] | None = None if isinstance(model, nn.Module) else arguments
        checks.check_process()

        # Options
        checks.check_runtime(runtime)
        checks.check_context(context, (None, *get_args(Context)))
        if not isinstance(labels, str | os.PathLike):
            labels = as_tuple("labels", labels)
        mean, std = as_tuple("mean", mean), as_tuple("std", std)
        classifier = load_classifier(model, weights=weights, labels=labels, mean=mean, std=std, patch_size=patch_size)
        self.name, self.activation = classifier.name, classifier.activation
        self.mean, self.std = classifier.mean, classifier.std
        self.scales = classifier.scales if scales is None else as_tuple("scales", scales)
        self.patch_sizes = as_tuple("patch_sizes", patch_sizes)
        self.k, self.max_cells = check_exponent(classifier.k if k is None else k), max_cells
        self.device = find_device(device)

        # Network: densely if possible, with the trained head and the stride asked for
        by_crops = context == "patch" or (context is None and classifier.by_crops)
        network = make_network(classifier.module, classifier.patch_size, "patch" if by_crops else "image")
        self.weights_digest = self.backbone_digest = digest_of(*network.below_classifier)
        classifier.check_backbone(self.backbone_digest)
        if classifier.head is not None:
            head = classifier.head
            network = network.with_classifier(head, head.fca.in_features, head.fcb.out_features)
        if stride is not None and stride != network.stride:
            network = network.with_stride(stride)
        self.context: Context = context or ("image" if "image" in network.contexts else "patch")
        # A calibration holds for the scores that it was fitted on
        fitted_on = (classifier.scales, None, None, classifier.k, "patch" if classifier.by_crops else "image")
        same = fitted_on == (self.scales, self.patch_sizes, stride, self.k, self.context)
        self.calibration = classifier.calibration if same else None
        if threshold is not None:
            if self.calibration is None:
                where = "" if same else " at other scales, stride, k or context than its own"
                raise DensescoreError(f"threshold: {self.name} has no probabilities{where}")
            self.calibration = self.calibration.at(threshold)
        checks.check_context(self.context, network.contexts)
        self.labels = checks.fit_labels(classifier.labels, network.classes, strict=labels is not None)

        # Device and dtype
        self.dtype = find_dtype(dtype, network, self.device)
        self.network: PatchNetwork = to_channels_last(network.to(self.device, self.dtype))
        self.normalize = engine.Normalization(self.mean, self.std, self.device, self.dtype)
        self.box_layer = None if classifier.box_layer is None else classifier.box_layer.to(self.device)
        checks.check_weights(self.network, self.name)
        if self.dtype != torch.float32 and self.device.type == "cpu":  # a GPU has them all
            checks.check_operations(self.network, self.name)
        self.pyramid(224, 224)  # checks the scales
        self.classifier_digest = digest_of(network.classifier, *([] if self.box_layer is None else [self.box_layer]))
        self.batching = batching.find_batching(network, self.device)
        self._lay_out = lru_cache(maxsize=64)(batching.lay_out)  # images of the same sizes are laid out once
        self._crop_batch = CropBatch(network.patch, self.device)

        # Runtime
        if isinstance(network, CropNetwork):
            self.network = network.with_runtime(runtime)
        elif runtime == "compile":
            raise DensescoreError("runtime 'compile' is for networks that are scored by crops alone")
        elif self.device.type == "cpu":
            # A named network's layers follow from its name, in the next process as well
            weights_of = (self.weights_digest, self.classifier_digest, str(self.dtype))
            origin = (classifier.backbone or self.name, network.patch, network.stride, *weights_of)
            self.network = accelerated(network, runtime, FormCache(origin if self._arguments and weights else None))
        elif self.device.type == "cuda":
            self.network = accelerated_on_gpu(network)
        self.runtime = self.network.runtime

    @property
    def dense(self) -> DenseNetwork:
        """The network, if it is convolutional.

        Raises:
            DensescoreError: it is scored by crops.
        """
        return dense_only(self.network, "this")

    def pyramid(self, height: int, width: int, max_cells: int | None = None) -> Pyramid:
        """The patches of an image of this size, in the order of the rows of `score` and `features`."""
        return Pyramid.of(
            height, width, scales=self.scales, patch_sizes=self.patch_sizes,
            patch=self.network.patch, stride=self.network.stride, phases=self.network.phases,
            max_cells=self.max_cells if max_cells is None else max_cells,
        )  # fmt: skip

    # One image

    def score(self, image: ImageLike, *, context: Context | None = None) -> DenseScores:
        """Score every patch of an image.

        Args:
            image: a path, encoded bytes, a file object, a PIL image, an array or a tensor; see `read_image`.
            context: the surroundings that a patch sees. ``"image"``: the real image (one dense pass). ``"patch"``:
                zeros, as in the paper's crops; each patch is cut out and scored alone, in batches. Default: the
                scorer's.

        Raises:
            DensescoreError: the image cannot be read, has too many patches, or features or scores are not finite.
        """
        context, clock = self._context(context), Clock(self.device)
        # Pixels
        pixels = read_image(image)
        clock.lap("decode")
        # Levels, trunk, head
        pyramid, outputs, retried = self._outputs(pixels, context, self._head(), clock)
        # Probabilities and boxes
        source = file_of(image) or pixels
        return self._launched(outputs, [pyramid], context, clock, retried=retried, source=source).read()[0]

    __call__ = score

    def features(self, image: ImageLike, *, context: Context | None = None) -> Tensor:
        """Transferable mid-level features of every patch: FC7's output, or the pooled map.

        Args:
            image: as for `score`.
            context: as for `score`.

        Returns:
            ``[M, D]`` in the scorer's dtype, in the order of `score`'s rows.
        """
        return self.patches(image, context=context).features

    def patches(self, image: ImageLike, *, context: Context | None = None) -> PatchFeatures:
        """The `features` of every patch, with the patches' boxes.

        Args:
            image: as for `score`.
            context: as for `score`.

        Example:
            >>> scorer = DenseScorer("lite0", scales=(1, 2))
            >>> scorer.patches(torch.zeros(3, 240, 320))
            PatchFeatures(108 patches of a 240×320 image at scales 1, 2, 1,280 features each)
        """
        pixels, clock = read_image(image), Clock(self.device)
        pyramid, features, _ = self._outputs(pixels, self._context(context), self.network.to_features, clock)
        features = check_outputs(features, f"{self.name}: the features").flatten(1).clone()  # a user may train on it
        return PatchFeatures(features, pyramid)

    def _outputs(self, pixels: Pixels, context: Context, head: Head, clock: Clock) -> tuple[Pyramid, Tensor, bool]:
        """The head's output for each patch, ``[M, …]``, and whether memory ran out and smaller parts were needed."""
        pyramid = self.pyramid(*pixels.shape[:2])
        subject = f"an image of {pyramid.height}×{pyramid.width} pixels with {len(pyramid):,} patches"

        def crops(batch: int) -> Tensor:
            return engine.crop_outputs(self.network, head, pixels, pyramid, self.normalize, clock, batch)

        def dense(parts: int) -> Tensor:
            if self.batching == "canvases" and parts == 1:
                (prefetched,) = self.prefetch([pixels])
                return batching.prefetched_outputs(self.dense, head, prefetched, self.normalize, clock)
            return engine.dense_outputs(self.dense, head, [pixels], [pyramid], self.normalize, clock, parts)

        if context == "patch":
            outputs, retried = retry_smaller(crops, self._crop_batch.sizes(), subject, "one crop is too large")
        else:
            outputs, retried = retry_smaller(dense, PARTS, subject, "use fewer or smaller scales, or score_huge")
        if self.device.type == "cpu":
            freed_memory.after_image()
        return pyramid, outputs, retried

    # Several images

    @property
    def batch_size(self) -> int:
        """Images that `score_many` scores in one pass; 1 if a pass over several takes as long as they do."""
        if self.context != "image" or self.batching is None:
            return 1
        if self.batching == "canvases":
            return batching.BATCH
        # The head of a CPU's network: past HEAD_CELLS it multiplies as fast as it can
        patches = len(self.pyramid(300, 400, max_cells=10**9))
        return 1 if self.patch_sizes else min(batching.BATCH, -(-batching.HEAD_CELLS // patches))

    def score_batch(self, images: Sequence[ImageLike], *, context: Context | None = None) -> list[DenseScores]:
        """Score several images in one pass if that is faster than one after another; see `batch_size`.

        The scores equal those of `score`, to rounding. They hold the paths of files, but no pixels.

        Args:
            images: as for `score`, in any sizes.
            context: as for `score`.

        Raises:
            DensescoreError: as for `score`, for any of the images; `score_many` continues with the others instead.
        """
        results: list[DenseScores] = []
        if self._context(context) == "image" and self.batching and len(images) > 1:
            pixels = [read_image(image) for image in images]
            try:
                results = self._score_together(pixels)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            # One by one, past the except block, whose error holds the failed pass's memory
            results = results or [self.score(image, context="image") for image in pixels]
        else:
            results = [self.score(image, context=context) for image in images]
        return [replace(scores, source=file_of(image)) for image, scores in zip(images, results, strict=True)]

    def _score_together(self, images: Sequence[Pixels]) -> list[DenseScores]:
        """Score images in as few passes as `BATCH_PIXELS` allows."""
        if self.batching == "canvases":
            launched = [self.launch(prefetched) for prefetched in self.prefetch(images)]
            return [scores for batch in launched for scores in batch.read()]
        network, head = self.dense, self._head()
        pyramids = [self.pyramid(*image.shape[:2]) for image in images]
        results = []
        for part in batching.batch_slices(images, pyramids):
            clock = Clock(self.device)
            outputs = engine.dense_outputs(network, head, images[part], pyramids[part], self.normalize, clock)
            freed_memory.after_image()
            results += self._launched(outputs, pyramids[part], "image", clock).read()
        return results

    def prefetch(self, images: Sequence[Pixels]) -> Iterator[batching.Prefetched]:
        """Lay images out and begin to copy them to the device, a batch at a time; from any thread."""
        pyramids = [self.pyramid(*image.shape[:2]) for image in images]
        for part in batching.batch_slices(images, pyramids):
            yield batching.prefetch(self._lay_out(self.dense, tuple(pyramids[part])), images[part], self.device)

    def launch(self, prefetched: batching.Prefetched) -> Launched:
        """Score a batch of `prefetch`, on the device's current stream; it may not be done on return."""
        clock = Clock(self.device, pyramid=prefetched.seconds)
        outputs = batching.prefetched_outputs(self.dense, self._head(), prefetched, self.normalize, clock)
        return self._launched(outputs, prefetched.layout.pyramids, "image", clock)

    # Outputs → scores

    def _head(self) -> Head:
        """Features ``[N, D]`` → logits, and the box layer's reduced features if there is one: ``[N, C + reduced]``."""
        return engine.head_with_boxes(self.network, self.box_layer)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Finite logits ``[M, C]`` → probabilities, float32 ``[M, C]``."""
        return logits.float().sigmoid() if self.activation == "sigmoid" else logits.softmax(1, dtype=torch.float32)

    def _launched(
        self, outputs: Tensor, pyramids: Sequence[Pyramid], context: Context, clock: Clock, **fields: Any
    ) -> Launched:
        """The scores of each image, from the outputs of all, ``[ΣM, …]``; `fields`: further ones of `DenseScores`."""
        layer = self.box_layer
        if outputs.device.type == "mps":  # it has no float64, in which powers are summed
            outputs, layer = outputs.cpu(), layer and copy.deepcopy(layer).cpu()
        logits, reduced = engine.split_outputs(outputs, layer)
        probabilities = self.probabilities(logits)  # [ΣM, C]
        sizes = [len(pyramid) for pyramid in pyramids]
        image_scores: Sequence[Tensor | None] = [None]  # computed when asked for; of several images, at once
        if len(pyramids) > 1:
            image_scores = power_mean(probabilities, torch.tensor([0, *accumulate(sizes)]), self.k).unbind()  # B × [C]
        parts = zip(probabilities.split(sizes), reduced.split(sizes), pyramids, image_scores, strict=True)
        results = [
            DenseScores(
                rows.clone(), self.labels, pyramid, k=self.k, model=self.name, context=context, runtime=self.runtime,
                calibration=self.calibration if context == self.context else None,
                object_boxes=engine.find_objects(layer, features, rows, pyramid), own_scores=scores,
                **fields,
            )
            for rows, features, pyramid, scores in parts
        ]  # fmt: skip
        return Launched(results, clock, OutputsCheck(logits, f"{self.name}: the scores"))

    # Parts of the way, for callers that do the rest themselves

    def level(self, pixels: Pixels, pyramid: Pyramid, level: Level) -> Tensor:
        """One level as the network takes it, resized, padded and normalized: ``[1, 3, P + nS, P + mS]``."""
        return self.normalize(level_pixels(pixels, pyramid, level))

    @torch.inference_mode()
    def score_maps(self, maps: Sequence[Tensor], levels: Sequence[Level]) -> Tensor:
        """Score cells whose maps are known: the last part of `score`, for levels that come in parts.

        Args:
            maps: output of ``network.fast_trunk`` per level: ``[phases², C, rows + h - 1, cols + w - 1]``.
            levels: grids of cells, numbered from 0 on.

        Returns:
            Probabilities, float32 ``[M, C]``.
        """
        for feature_map in maps:
            check_outputs(feature_map, f"{self.name}: the trunk's features")
        network, clock = self.dense, Clock(self.device)
        logits = engine.head_outputs(network, network.classifier, maps, levels, clock)
        return self.probabilities(check_outputs(logits, f"{self.name}: the scores"))

    def score_features(
        self, features: Tensor, height: int, width: int, *, context: Context | None = None
    ) -> DenseScores:
        """Score patches whose features are known: the part of `score` that follows `features`.

        Args:
            features: ``[M, D]``, any float dtype: the result of `features` for an image of this size.
            height: image height in pixels.
            width: image width in pixels.
            context: context of the features.
        """
        with torch.inference_mode():
            outputs = self._head()(features.to(self.device, self.dtype))
        clock = Clock(self.device)
        return self._launched(outputs, [self.pyramid(height, width)], self._context(context), clock).read()[0]

    def _context(self, context: Context | None) -> Context:
        """The context of a call, or the scorer's own."""
        if context is None:
            return self.context
        checks.check_context(context, self.network.contexts)
        return context

    # Descriptions and copies

    def __repr__(self) -> str:
        return f"DenseScorer({self.describe()})"

    def describe(self) -> str:
        """Name, number of classes, scales, patch, stride, exponent, device and runtime, in words."""
        count, dtype = len(self.labels), str(self.dtype).removeprefix("torch.")
        sizes = ", ".join(f"{size:g}" for size in self.patch_sizes or self.scales)
        sizes = f"patches of {sizes} pixels of the image" if self.patch_sizes else f"scales {sizes}"
        crops = ", by crops" if self.context == "patch" else ""
        return (
            f"{self.name!r}, {count:,} class{'es' * (count != 1)}; {sizes}; a patch of {self.network.patch} pixels "
            f"every {self.network.stride}; k = {self.k:g}; {dtype} on {self.device} by {self.runtime}{crops}"
        )

    def fingerprint(self, of: Stage = "image scores", *, context: Context | None = None) -> dict[str, Any]:
        """Everything besides the image that a result depends on, as JSON values by option name.

        Args:
            of: ``"features"``: features of one level, equal for all heads and scales. ``"patch scores"``: also the
                classifier and the scales. ``"image scores"``: also k, the labels and the maximum number of patches.
            context: as for `score`.
        """
        features = {
            "weights": self.weights_digest,
            "mean": self.mean,
            "std": self.std,
            "patch": self.network.patch,
            "stride": self.network.stride,
            "device": self.device.type,
            "dtype": str(self.dtype),
            "runtime": self.runtime,
            "context": self._context(context),
        }
        if of == "features":
            return features
        patch_scores = {
            "densescore": version("densescore"),
            "model": self.name,
            "classifier": self.classifier_digest,
            "activation": self.activation,
            "scales": self.scales if self.patch_sizes is None else None,
            "patch_sizes": self.patch_sizes,
            **features,
        }
        if of == "patch scores":
            return patch_scores
        calibration = None if self.calibration is None else asdict(self.calibration)
        return {
            **patch_scores, "labels": self.labels, "k": self.k, "max_cells": self.max_cells, "calibration": calibration
        }  # fmt: skip

    def with_scales(self, scales: Numbers | None = None, *, patch_sizes: Numbers | None = None) -> Self:
        """A scorer with other scales and the same network.

        Args:
            scales: as for the constructor.
            patch_sizes: as for the constructor. Exactly one of the two must be given.

        Raises:
            DensescoreError: both or neither are given, or the sizes are invalid.

        Example:
            >>> from densescore import DenseScorer
            >>> len(DenseScorer("lite0").with_scales((1,)).pyramid(224, 224))
            1
        """
        if (scales is None) == (patch_sizes is None):
            raise DensescoreError(f"with_scales takes scales or patch_sizes, got {scales} and {patch_sizes}")
        changed = copy.copy(self)
        changed.scales = self.scales if scales is None else as_tuple("scales", scales)
        changed.patch_sizes = as_tuple("patch_sizes", patch_sizes)
        changed.pyramid(224, 224)  # checks them
        if changed.scales != self.scales or changed.patch_sizes:
            changed.calibration = None
        if self._arguments is not None:
            changed._arguments = {**self._arguments, "scales": scales, "patch_sizes": patch_sizes}
        return changed

    def with_network(self, network: PatchNetwork, change: str) -> Self:
        """A scorer with another network and the same preprocessing and scales.

        Args:
            network: network on the scorer's device and in its dtype, with the same patch and stride.
            change: description of the difference, for the digest of the weights.
        """
        changed = copy.copy(self)
        changed.network, changed._arguments = network, None
        changed.weights_digest = hashlib.sha256(f"{change} of {self.weights_digest}".encode()).hexdigest()
        return changed

    def __copy__(self) -> Self:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that shares the network, which never changes."""
        return copy.copy(self)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor that make the scorer again.

        Raises:
            DensescoreError: it was made from a module, or has random weights.
        """
        if self._arguments is None or self._arguments["weights"] is None:
            raise DensescoreError(
                "a scorer is stored as the arguments that make it again, which a module or random weights are not: "
                "make this one in the process that uses it"
            )
        return {**self._arguments, "device": str(self.device), "runtime": self.runtime}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the constructor's arguments, since packed weights cannot leave their process."""
        return _unpickle, (type(self), self.arguments(), self.fingerprint())

    def __getattr__(self, name: str) -> Any:
        """Make an unpickled scorer when it is first used, and check that its model is still the same."""
        if name.startswith("__") or "_pickled" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with _MAKING:
            if "_pickled" in self.__dict__:
                arguments, expected = self.__dict__["_pickled"]
                made = type(self)(**arguments)
                changed = [key for key, value in made.fingerprint().items() if value != expected[key]]
                if changed:
                    raise DensescoreError(
                        f"the pickled scorer cannot be made again: here it has another {', '.join(changed)}"
                    )
                self.__dict__.update({**made.__dict__, **self.__dict__})
                del self.__dict__["_pickled"]
        return getattr(self, name)


_MAKING = threading.RLock()


def _unpickle(kind: type[DenseScorer], arguments: dict[str, Any], expected: dict[str, Any]) -> DenseScorer:
    """A scorer that is made when it is first used: an error in here would end a pool's worker, and hang the pool."""
    scorer = object.__new__(kind)
    scorer.__dict__["_pickled"] = arguments, expected
    return scorer
