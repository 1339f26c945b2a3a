"""The result: a probability per patch and class, where the patches are, and what follows from both."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from densescore.errors import DensescoreError
from densescore.geometry import Level, Pyramid
from densescore.io.files import atomic_write
from densescore.io.images import ImageLike
from densescore.io.names import unique_labels
from densescore.models import BACKGROUND
from densescore.models.box_layer import ObjectBoxes
from densescore.models.labels import find_classes, find_label
from densescore.models.weights import read_metadata, read_weights
from densescore.results import formats
from densescore.results.patches import Patch, each_patch
from densescore.results.regions import MIN_SHARE, SHARE, Region, class_regions, map_regions
from densescore.results.shown import Shown
from densescore.results.smoothing import RADIUS, smooth
from densescore_kernels import Grid, GridLevel, power_mean, response_map

if TYPE_CHECKING:
    from pandas import DataFrame
    from supervision import Detections

_FORMAT = "densescore-scores-1"
_BOXES = "object_boxes."  # before the names of their tensors in a file

Locate = Literal["shrunk", "mean"]
"""How `DenseScores.locate` finds a class's place."""


class Ranked(NamedTuple):
    """A class, its image score, that score's k-th root (`DenseScores.confidence`), and the score of its best patch."""

    label: str
    score: float
    confidence: float
    best_patch: float


class Place(NamedTuple):
    """The most likely location of a class: the center of a pixel, in image pixels, and the response map there."""

    x: float
    y: float
    response: float


@dataclass(frozen=True, eq=False, repr=False)
class DenseScores(Shown):
    """Scores of every patch of one image, at every scale. Iteration gives each patch with its box and scores.

    Attributes:
        patch_scores: float32 ``[M, C]`` in [0, 1], a probability per patch and class; levels one after another, cells
            of a level row by row.
        labels: C class names. Of names that repeat, each gets its index: ``crane (134)``.
        pyramid: the geometry: image size, levels, patch and stride.
        k: the exponent of the image score.
        model: name of the network.
        context: ``"image"`` (dense) or ``"patch"`` (crops).
        runtime: what ran the trunk: ``"torch"`` or ``"openvino"``.
        timings: seconds per stage: decode, pyramid, trunk, head.
        retried: memory ran out, and the image was scored again in smaller parts.
        own_scores: `image_scores` at `k`, if they were computed along with those of other images.
        source: the photograph, for pictures: the path of its file, or the pixels (no copy) where a single image was not
            given as a file. None for scores that were loaded or pickled, and for those of many images that were not
            given as files.
        object_boxes: of a head with a box layer: the boxes of the objects that the best patches of each class show.

    Example:
        >>> pyramid = Pyramid.of(224, 256, scales=(1,))  # two patches
        >>> scores = DenseScores(torch.tensor([[0.9, 0.1], [0.5, 0.5]]), ("cat", "dog"), pyramid)
        >>> scores.top(1)[0].label
        'cat'
        >>> scores.response_map(["cat"])[0, 0, [0, 128, 255]]  # left patch, both, right patch
        tensor([0.9000, 0.7000, 0.5000])
    """

    patch_scores: Tensor
    labels: tuple[str, ...]
    pyramid: Pyramid
    k: float = 5.0
    model: str = ""
    context: str = "image"
    runtime: str = "torch"
    timings: dict[str, float] = field(default_factory=dict)
    retried: bool = False
    own_scores: Tensor | None = None
    source: ImageLike | None = None
    object_boxes: ObjectBoxes | None = None

    def __post_init__(self) -> None:
        expected = (len(self.pyramid), len(self.labels))
        if tuple(self.patch_scores.shape) != expected:
            raise DensescoreError(f"patch_scores: expected [M, C] = {expected}, got {tuple(self.patch_scores.shape)}")
        if self.object_boxes is not None:
            self.object_boxes.check(*expected)
        object.__setattr__(self, "labels", unique_labels(self.labels))

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: all but the photograph."""
        return {**self.__dict__, "source": None}

    def __len__(self) -> int:
        """M, the number of patches."""
        return len(self.patch_scores)

    def __iter__(self) -> Iterator[Patch]:
        """The patches, in the order of `patch_scores`; their `values` are their scores ``[C]``."""
        return each_patch(self.pyramid, self.patch_scores)

    @property
    def levels(self) -> tuple[Level, ...]:
        """Per level: its scale, grid of cells, and ``cells``, the slice of `patch_scores` that is its own."""
        return self.pyramid.levels

    @cached_property
    def boxes(self) -> Tensor:
        """Every patch in image pixels, ``x0 y0 x1 y1``, not clipped to the image: float32 ``[M, 4]``."""
        return torch.from_numpy(self.pyramid.boxes())

    def image_scores(self, k: float | None = None) -> Tensor:
        """The paper's eq. (1), ``score(c) = (1/M) Σ_i y(c | P_i)^k``: float32 ``[C]`` in [0, 1].

        Args:
            k: at least 1; the scorer's own by default. 1 is the mean; a large k ranks classes by their best patch.
        """
        if self.own_scores is not None and k in (None, self.k):
            return self.own_scores
        return power_mean(self.patch_scores, k=self.k if k is None else k)[0]

    def confidence(self, k: float | None = None) -> Tensor:
        """The k-th root of `image_scores`, on the scale of the patch scores: float32 ``[C]`` in [0, 1].

        It orders classes as the image scores do, and keeps doing so for large k, where ``y^k`` is 0 in float32: scores
        are divided by each class's best patch before the power is taken. It lies between the mean and the best patch.

        Args:
            k: as for `image_scores`.

        Example:
            >>> scores = DenseScores(torch.tensor([[0.1, 0.2]]), ("a", "b"), Pyramid.of(224, 224, scales=(1,)))
            >>> scores.image_scores(100), scores.confidence(100)
            (tensor([0., 0.]), tensor([0.1000, 0.2000]))
        """
        k = self.k if k is None else k
        best = self.patch_scores.amax(0)  # [C]
        relative = self.patch_scores / best.clamp(min=torch.finfo(best.dtype).smallest_normal)
        return best * power_mean(relative, k=k)[0] ** (1 / k)

    def top(self, n: int = 5) -> list[Ranked]:
        """The `n` classes of the highest image scores, best first; an adapted network's background is left out.

        Only where it was selected alone, the background is there; see `select`.

        Classes are ranked by `confidence`, which tells them apart where image scores are too small for float32.
        """
        scores, confidence, best = self.image_scores(), self.confidence(), self.patch_scores.amax(0)  # [C]
        order = torch.argsort(confidence, descending=True, stable=True).tolist()
        kept = [c for c in order if self.labels[c] != BACKGROUND or len(order) == 1][:n]
        return [Ranked(self.labels[c], scores[c].item(), confidence[c].item(), best[c].item()) for c in kept]

    def index(self, label: str) -> int:
        """Column of a class in `patch_scores`.

        Raises:
            DensescoreError: no such class; the message lists the nearest names. Or a group of classes, which has no
                column; see `select`.
        """
        return find_label(label, self.labels)

    def select(self, labels: str | Sequence[str]) -> "DenseScores":
        """The scores of some classes and groups of classes alone, each once, a column each.

        With ImageNet's 1,000 labels, the name of a group stands for all classes below that noun of WordNet; see
        `densescore.models.labels.find_classes`. The score of a patch for a group is the sum of its scores for these
        classes, at most 1, so image scores, maps and boxes of the group are those of the summed probabilities.

        Args:
            labels: names of classes and groups.

        Returns:
            Scores with ``patch_scores`` ``[M, len(labels)]``; a group's label is its name.

        Raises:
            DensescoreError: no such class or group, or an ambiguous name.

        Example:
            >>> import densescore, skimage
            >>> scores = densescore.classify(skimage.data.chelsea(), scales=(1, 1.3))
            >>> [ranked.label for ranked in scores.select(["dog", "cat", "wolf spider"]).top()]
            ['cat', 'dog', 'wolf spider']
        """
        names = [labels] if isinstance(labels, str) else labels
        kept = {found.label: found.columns for found in (find_classes(name, self.labels) for name in names)}
        boxes = self.object_boxes
        boxes = boxes.select([*kept.values()], self.patch_scores) if boxes is not None and kept else None
        scores = self.columns([*kept])
        return replace(self, patch_scores=scores, labels=tuple(kept), own_scores=None, object_boxes=boxes)

    def columns(self, names: Sequence[str]) -> Tensor:
        """Scores of each patch for classes and groups: ``[M, len(names)]``."""
        found = [self.patch_scores[:, list(find_classes(name, self.labels).columns)].sum(1) for name in names]
        return torch.stack(found, 1).clamp(max=1) if found else self.patch_scores[:, :0]

    def response_map(self, labels: str | Sequence[str] | None = None) -> Tensor:
        """At each pixel, the mean score of all patches of all scales that hold the pixel's center.

        Args:
            labels: names of classes, or of groups (see `select`); all classes by default.

        Returns:
            float32 ``[len(labels), H, W]`` in [0, 1]: raw averages, never rescaled, so comparable across images.

        Raises:
            DensescoreError: no such class or group.
        """
        names = [labels] if isinstance(labels, str) else labels
        return response_map(self.patch_scores if names is None else self.columns(names), self._grid)

    @cached_property
    def _grid(self) -> Grid:
        pyramid = self.pyramid
        levels = tuple(GridLevel(level.height, level.width, level.rows, level.cols) for level in pyramid.levels)
        return Grid(pyramid.height, pyramid.width, pyramid.patch, pyramid.stride, levels)

    @cached_property
    def coverage(self) -> Tensor:
        """How many patches, of all scales, hold each pixel's center: int64 ``[H, W]``; fewer towards the border."""
        axes = [(self._grid.down(number), self._grid.across(number)) for number in range(len(self.levels))]
        counts = [np.outer(down.cells[down.segment], across.cells[across.segment]) for down, across in axes]
        return torch.from_numpy(np.sum(counts, axis=0))

    def shrunk_map(self, labels: str | Sequence[str] | None = None) -> Tensor:
        """The response map that allows for how few patches hold a pixel near the border: what `locate` looks at.

        ``Σ y / (n + max n)`` over the n patches that hold a pixel, times 2, so that the pixels that most patches hold
        keep the value of the response map.

        Args:
            labels: as for `response_map`.

        Returns:
            float32 ``[len(labels), H, W]`` in [0, 1].
        """
        return self.shrink(self.response_map(labels))

    def shrink(self, maps: Tensor) -> Tensor:
        """`shrunk_map` of response maps ``[…, H, W]`` that are known already."""
        counts = self.coverage.to(maps)
        return maps * (2 * counts / (counts + counts.max()))

    def locate(self, labels: str | Sequence[str] | None = None, *, by: Locate = "shrunk") -> list[Place]:
        """The most likely location of each class: a pixel's center.

        Near the image's border few patches hold a pixel, and a mean of few is extreme more often: a response map's
        maximum often lies there by chance. ``by="shrunk"`` shrinks each pixel's mean towards 0 by how few patches hold
        the pixel, ``Σ y / (n + max n)`` over its n patches, and then takes the mean over a neighborhood of the pixel
        (`densescore.results.smoothing`): a place in the middle of a response is more certain than its highest step.

        Args:
            labels: as for `response_map`.
            by: ``"shrunk"``, or ``"mean"``: the response map's own maximum.

        Returns:
            A place per label.

        Example:
            >>> scores = DenseScores(torch.tensor([[0.8], [0.7]]), ("cat",), Pyramid.of(224, 256, scales=(1,)))
            >>> place = scores.locate("cat")[0]  # both patches: 1.5 / (2 + 2); the left one alone: 0.8 / (1 + 2)
            >>> 32 < place.x < 224, round(place.response, 2)
            (True, 0.75)
            >>> scores.locate("cat", by="mean")[0].x
            0.5
        """
        maps = self.response_map(labels)  # [C, H, W]
        votes = self.shrink(maps) if by == "shrunk" else maps
        radius = round(RADIUS * max(self.pyramid.height, self.pyramid.width)) if by == "shrunk" else 0
        best = torch.stack([(smooth(one, radius) if radius else one).argmax() for one in votes])  # [C]
        responses = maps.flatten(1).gather(1, best[:, None])[:, 0]
        width = self.pyramid.width
        pairs = zip(best.tolist(), responses.tolist(), strict=True)
        return [Place(index % width + 0.5, index // width + 0.5, response) for index, response in pairs]

    def boxes_from_map(
        self,
        label: str,
        share: float = SHARE,
        *,
        min_share: float = MIN_SHARE,
        min_area: float = 0.0,
        max_regions: int | None = None,
    ) -> list[Region]:
        """Boxes of the connected regions where a class's `shrunk_map` reaches a share of its peak.

        Args:
            label: a class name, or a group's.
            share: of the map's maximum, in (0, 1].
            min_share: least area of a region, as a share of the largest region's, in [0, 1].
            min_area: least area of a region in pixels. The region of the map's maximum is always there.
            max_regions: most regions.

        Returns:
            Regions, highest peak first; boxes hold whole pixels, ``x1`` and ``y1`` exclusive.

        Raises:
            DensescoreError: no such class, or an argument that is out of range.
        """
        found = map_regions(self, [label], share, min_share=min_share, min_area=min_area, max_regions=max_regions)
        return [region for _, region in found]

    def find_boxes(
        self, label: str, share: float | None = None, *, min_area: float = 0.0, max_regions: int | None = None
    ) -> list[Region]:
        """The boxes of a class's objects: of the head's box layer if it has one, else as `boxes_from_map` finds them.

        These are the boxes that pictures, tables, COCO's and supervision's forms have.

        Args:
            label: a class name.
            share: of the best box's score that a box must reach, 0.1 by default; without a box layer, as for
                `boxes_from_map`.
            min_area: least area in pixels of all boxes but the first.
            max_regions: most boxes.

        Returns:
            Boxes, best first.

        Raises:
            DensescoreError: no such class, or an argument that is out of range.
        """
        found = class_regions(self, [label], share, min_area=min_area, max_regions=max_regions)
        return [region for _, region in found]

    def to_row(self, top: int = 5, labels: Sequence[str] | None = None) -> dict[str, Any]:
        """A row for ``pandas.DataFrame``; see `densescore.results.formats.to_row`."""
        return formats.to_row(self, top, labels)

    def to_df(self, labels: str | Sequence[str] | None = None) -> "DataFrame":
        """A row per patch and class, as a pandas DataFrame; see `densescore.results.formats.to_df`."""
        return formats.to_df(self, labels)

    def to_supervision(self, labels: str | Sequence[str] | None = None, share: float | None = None) -> "Detections":
        """Regions as ``supervision.Detections``; see `densescore.results.formats.to_supervision`."""
        return formats.to_supervision(self, labels, share)

    def to_coco(
        self,
        image_id: int,
        labels: str | Sequence[str] | None = None,
        *,
        category_ids: Mapping[str, int] | None = None,
        share: float | None = None,
    ) -> list[dict[str, Any]]:
        """Regions in the format of COCO's results; see `densescore.results.formats.to_coco`."""
        return formats.to_coco(self, image_id, labels, category_ids=category_ids, share=share)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write to a safetensors file, whole or not at all; `load` reads it back.

        Raises:
            DensescoreError: the file exists and `overwrite` is off.
        """
        description = {
            "labels": self.labels,
            "pyramid": asdict(self.pyramid),
            **{name: getattr(self, name) for name in ("k", "model", "context", "runtime", "timings", "retried")},
        }
        metadata = {"format": _FORMAT, "densescore": json.dumps(description)}
        with atomic_write(path, overwrite=overwrite) as temporary:
            boxes = {} if self.object_boxes is None else self.object_boxes._asdict()
            tensors = {"patch_scores": self.patch_scores, **{_BOXES + name: tensor for name, tensor in boxes.items()}}
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DenseScores":
        """Read what `save` wrote.

        Raises:
            DensescoreError: not such a file.
        """
        tensors = read_weights(path)
        metadata = read_metadata(path) if Path(path).suffix == ".safetensors" else {}
        if metadata.get("format") != _FORMAT:
            raise DensescoreError(f"{path}: not saved scores (format {metadata.get('format')!r}, not {_FORMAT!r})")
        try:
            description = json.loads(metadata["densescore"])
            pyramid = description.pop("pyramid")
            levels = tuple(Level(**level) for level in pyramid.pop("levels"))
            labels = tuple(description.pop("labels"))
            boxed = any(name.startswith(_BOXES) for name in tensors)
            boxes = ObjectBoxes(*(tensors[_BOXES + name] for name in ObjectBoxes._fields)) if boxed else None
            whole = Pyramid(**pyramid, levels=levels)
            return cls(tensors["patch_scores"], labels, whole, object_boxes=boxes, **description)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DensescoreError(f"{path}: saved scores without a valid {error}") from error
