"""The result: a probability per patch and class, where the patches are, and what follows from both."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from densescore.errors import DensescoreError
from densescore.geometry import Level, Pyramid
from densescore.io.images import ImageLike, Pixels, read_sized
from densescore.io.names import unique_labels
from densescore.models.box_layer import ObjectBoxes
from densescore.models.calibration import Calibration
from densescore.models.head import BACKGROUND
from densescore.models.labels import as_names, find_classes, find_label
from densescore.results import formats, regions, stored
from densescore.results.formats import Ranked
from densescore.results.patches import BestPatch, Patch, describe_patches, each_patch, patch_scales, rank_patches
from densescore.results.regions import MAP_THRESHOLD, MIN_AREA_SHARE, ClassMap, Place, Region
from densescore_kernels import Grid, GridLevel, power_mean, response_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from supervision import Detections
    from typing_extensions import Unpack

    from densescore.results.draw import Picture, StyleOptions

Locate = Literal["heatmap", "response_map"]
"""How `DenseScores.locate` finds a class's place."""


@dataclass(frozen=True, eq=False, repr=False)
class DenseScores:
    """Scores of every patch of one image, at every scale. Iteration gives each patch with its box and scores.

    Tensors stay on the scorer's device; so do those that methods return. Methods that return plain values, arrays or
    pictures copy to the host only what these need. `cpu` copies all; pickles and files hold tensors of the host.

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
        retried: whether the image was scored again in smaller parts, after running out of memory.
        own_scores: `image_scores` at `k`, if they were computed along with those of other images.
        source: the photograph, for pictures: the path of its file, or the pixels of a single image (no copy). None for
            scores that were loaded or pickled, and for those of one of many images in memory.
        object_boxes: boxes of the objects that each class's best patches show, from a head with a box layer.
        calibration: confidences → probabilities, or None if the model has none at these scales.
        calibrated_inputs: numbers that `calibration` takes, if `select` computed them from all classes.

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
    calibration: Calibration | None = None
    calibrated_inputs: Tensor | None = None

    def __post_init__(self) -> None:
        expected = (len(self.pyramid), len(self.labels))
        if tuple(self.patch_scores.shape) != expected:
            raise DensescoreError(f"patch_scores: expected [M, C] = {expected}, got {tuple(self.patch_scores.shape)}")
        if self.object_boxes is not None:
            self.object_boxes.check(*expected)
        object.__setattr__(self, "labels", unique_labels(self.labels))

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: all but the photograph, on the host."""
        return {**self.cpu().__dict__, "source": None}

    def cpu(self) -> "DenseScores":
        """The same scores with all tensors on the host; these scores themselves if they are there."""
        if self.patch_scores.device.type == "cpu":
            return self
        boxes = None if self.object_boxes is None else ObjectBoxes(*(part.cpu() for part in self.object_boxes))
        names = ("patch_scores", "own_scores", "calibrated_inputs")
        parts = {name: tensor.cpu() for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, object_boxes=boxes, **parts)

    def __len__(self) -> int:
        """M, the number of patches."""
        return len(self.patch_scores)

    def __iter__(self) -> Iterator[Patch]:
        """The patches, in the order of `patch_scores`; their `values` are their scores ``[C]``."""
        return each_patch(self.pyramid, self.patch_scores)

    @property
    def levels(self) -> tuple[Level, ...]:
        """Per level: its scale, grid of cells, and ``cells``, its slice of `patch_scores`."""
        return self.pyramid.levels

    @cached_property
    def boxes(self) -> Tensor:
        """Every patch in image pixels, ``x0 y0 x1 y1``, not clipped to the image: float32 ``[M, 4]``."""
        return torch.from_numpy(self.pyramid.boxes()).to(self.patch_scores.device, non_blocking=True)

    # Scores of the image

    def image_scores(self, k: float | None = None) -> Tensor:
        """The paper's eq. (1), ``score(c) = (1/M) Σ_i y(c | P_i)^k``: float32 ``[C]`` in [0, 1].

        Args:
            k: exponent, at least 1; the scorer's by default. 1 is the mean; large ones rank by the best patch.
        """
        if self.own_scores is not None and k in (None, self.k):
            return self.own_scores
        return power_mean(self.patch_scores, k=self.k if k is None else k)[0]

    def confidence(self, k: float | None = None) -> Tensor:
        """The k-th root of `image_scores`, on the scale of the patch scores: float32 ``[C]`` in [0, 1].

        It ranks classes as the image scores do, even at a large `k`, where those underflow to 0 in float32. It lies
        between the mean and the best patch.

        Example:
            >>> scores = DenseScores(torch.tensor([[0.1, 0.2]]), ("a", "b"), Pyramid.of(224, 224, scales=(1,)))
            >>> scores.image_scores(100), scores.confidence(100)
            (tensor([0., 0.]), tensor([0.1000, 0.2000]))
        """
        return _confidence(self.patch_scores, self.k if k is None else k)

    def image_probabilities(self) -> Tensor | None:
        """The probability that the image shows each class: float32 ``[C]`` in [0, 1], or None without calibration.

        A head's were fitted on held-out training images (``densescore train``). Those of the ImageNet models say that
        the class is what the photograph shows. NaN for a class with too few examples.

        Example:
            >>> import densescore, skimage
            >>> scores = densescore.classify(skimage.data.chelsea(), classes=["cat", "dog"])
            >>> [round(probability) for probability in scores.image_probabilities().tolist()]
            [1, 0]
        """
        if self.calibration is None:
            return None
        values = self.calibration.probabilities(self._calibrated_inputs().cpu().numpy(), self.labels)
        return torch.from_numpy(values).float().to(self.patch_scores.device)

    def probability(self, label: str) -> float | None:
        """The probability that the image shows a class or group, or None; see `image_probabilities`."""
        values = self.select(label).image_probabilities()
        return None if values is None or values[0].isnan() else float(values[0])

    def _calibrated_inputs(self) -> Tensor:
        if self.calibrated_inputs is not None:
            return self.calibrated_inputs
        return self.confidence() if self.calibration is None else self.calibration.inputs(self.confidence())

    def top(self, n: int = 5) -> list[Ranked]:
        """The `n` classes of the highest confidence, best first.

        An adapted network's background is left out, unless it is the only class (see `select`).
        """
        columns = [self.image_scores(), self.confidence(), self.patch_scores.amax(0), self._calibrated_inputs()]
        values = torch.stack(columns, 1).cpu()  # [C, 4]
        order = torch.argsort(values[:, 1], descending=True, stable=True).tolist()
        best = [c for c in order if self.labels[c] != BACKGROUND or len(order) == 1][:n]
        labels = [self.labels[c] for c in best]
        answers = formats.answers(self.calibration, values[best, 3].numpy(), labels)
        rows = zip(labels, values[best, :3].tolist(), answers, strict=True)
        return [Ranked(label, *numbers)._replace(probability=p, answer=answer) for label, numbers, (p, answer) in rows]

    # Classes and groups of classes

    def index(self, label: str) -> int:
        """Column of a class in `patch_scores`.

        Raises:
            DensescoreError: no such class, with the nearest names; or a group of classes, which has no column.
        """
        return find_label(label, self.labels)

    def select(self, labels: str | Sequence[str]) -> "DenseScores":
        """The scores of some classes and groups of classes alone, each once, a column each.

        With ImageNet's 1,000 labels, the name of a group stands for all classes below that noun of WordNet. A patch's
        score for a group is the sum of its scores for these classes, at most 1; image scores, maps and boxes follow.

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
        classes = dict(find_classes(name, self.labels)[:2] for name in as_names(labels))
        boxes = self.object_boxes
        boxes = boxes.select([*classes.values()], self.patch_scores) if boxes is not None and classes else None
        inputs = None
        if self.calibration is not None and classes:
            every = self._calibrated_inputs()
            sums = [every[self._on_device(columns)].sum() for columns in classes.values()]
            inputs = torch.stack(sums).clamp(max=1)
        return replace(
            self, patch_scores=self.columns([*classes]), labels=tuple(classes), own_scores=None, object_boxes=boxes,
            calibrated_inputs=inputs,
        )  # fmt: skip

    def columns(self, labels: str | Sequence[str] | None = None) -> Tensor:
        """Scores of each patch for classes and groups, by default all classes: ``[M, len(labels)]``."""
        if labels is None:
            return self.patch_scores
        classes = [find_classes(name, self.labels) for name in as_names(labels)]
        indices = [self._on_device(each.columns) for each in classes]
        sums = [self.patch_scores[:, index].sum(1) for index in indices]
        return torch.stack(sums, 1).clamp(max=1) if sums else self.patch_scores[:, :0]

    def _on_device(self, indices: Sequence[int]) -> Tensor:
        """Indices, copied to the device without waiting for it, as a list would."""
        return torch.tensor(indices).to(self.patch_scores.device, non_blocking=True)

    def _names(self, labels: str | Sequence[str] | None) -> Sequence[str]:
        """Full names of classes and groups, each once; by default the best class."""
        return [self.top(1)[0].label] if labels is None else self.select(labels).labels

    # Maps

    @cached_property
    def grid(self) -> Grid:
        """The patches as the kernels take them."""
        pyramid = self.pyramid
        levels = tuple(GridLevel(level.height, level.width, level.rows, level.cols) for level in pyramid.levels)
        return Grid(pyramid.height, pyramid.width, pyramid.patch, pyramid.stride, levels)

    @cached_property
    def coverage(self) -> Tensor:
        """Number of patches, of all scales, that hold each pixel's center: ``[H, W]``; fewer near the border.

        int16, or int32 where more than 32,767 patches hold a pixel.
        """
        return regions.coverage_of(self.grid)

    def response_map(self, labels: str | Sequence[str] | None = None) -> Tensor:
        """At each pixel, the mean score of all patches of all scales that hold the pixel's center.

        Args:
            labels: names of classes, or of groups (see `select`); all classes by default.

        Returns:
            float32 ``[len(labels), H, W]`` in [0, 1]: raw averages, never rescaled, so comparable across images.

        Raises:
            DensescoreError: no such class or group.
        """
        return response_map(self.columns(labels), self.grid)

    def heatmap(self, labels: str | Sequence[str] | None = None) -> Tensor:
        """The response map, lowered where few patches hold a pixel, averaged over each pixel's neighborhood.

        It is the map that is drawn: pictures, `locate`, boxes, tables and the page use it. With n patches over a pixel
        the response map counts ``2 n / (n + max n)`` times: a mean of few, near the border, is extreme more often.

        Args:
            labels: as for `response_map`.

        Returns:
            float32 ``[len(labels), H, W]`` in [0, 1], never rescaled.

        Example:
            >>> scores = DenseScores(torch.tensor([[0.8], [0.7]]), ("cat",), Pyramid.of(224, 256, scales=(1,)))
            >>> heatmap = scores.heatmap("cat")[0]
            >>> float(heatmap.max()) == scores.locate("cat")[0].peak
            True
        """
        return regions.heatmap_of(self.response_map(labels), self.coverage)

    def thumbnail(self, side: int) -> "DenseScores":
        """The same patches of an image of at most `side` pixels a side, whose maps cost as little as their pixels."""
        pyramid = self.pyramid
        width, height = regions.thumbnail_size(pyramid.width, pyramid.height, side)
        if (width, height) == (pyramid.width, pyramid.height):
            return self
        return replace(self, pyramid=replace(pyramid, width=width, height=height))

    def class_map(self, label: str, side: int) -> ClassMap:
        """A class or group as pictures of at most `side` pixels a side show it."""
        small = self.thumbnail(side)
        heatmap = small.heatmap(label)[0]
        values = heatmap.cpu().numpy()
        boxes = small.class_boxes([label], maps=values[None])[label]
        if self.object_boxes is not None:  # in pixels of the image
            zoom = np.tile([values.shape[1] / self.pyramid.width, values.shape[0] / self.pyramid.height], 2)
            boxes = [each._replace(box=tuple(np.rint(each.box * zoom).astype(int).tolist())) for each in boxes]
        best = self.select(label).top(1)[0]
        place = regions.find_place(heatmap)
        return ClassMap(label, best.shown, best.probability is not None, values, place, boxes)

    # Places and boxes

    def locate(self, labels: str | Sequence[str] | None = None, *, by: Locate = "heatmap") -> list[Place]:
        """The most likely location of each class, the peak of its `heatmap`: a pixel's center, and the value there.

        Args:
            labels: as for `response_map`.
            by: ``"heatmap"``, or ``"response_map"``, whose maximum often lies at the border by chance.

        Example:
            >>> scores = DenseScores(torch.tensor([[0.8], [0.7]]), ("cat",), Pyramid.of(224, 256, scales=(1,)))
            >>> place = scores.locate("cat")[0]  # both patches: 1.5 / (2 + 2); the left one alone: 0.8 / (1 + 2)
            >>> 32 < place.x < 224, round(place.peak, 2)
            (True, 0.75)
            >>> scores.locate("cat", by="response_map")[0].x
            0.5
        """
        maps = self.heatmap(labels) if by == "heatmap" else self.response_map(labels)  # [C, H, W]
        return [regions.find_place(values) for values in maps]

    def boxes_from_map(
        self,
        label: str,
        share: float = MAP_THRESHOLD,
        *,
        min_share: float = MIN_AREA_SHARE,
        min_area: float = 0.0,
        max_regions: int | None = None,
    ) -> list[Region]:
        """Boxes of the connected regions where a class's `heatmap` reaches a share of its peak.

        Args:
            label: a class name, or a group's.
            share: threshold, as a share of the map's maximum, in (0, 1].
            min_share: least area of a region, as a share of the largest region's, in [0, 1].
            min_area: least area of a region in pixels. The region of the map's maximum is never too small.
            max_regions: most regions.

        Returns:
            Regions, highest peak first.

        Raises:
            DensescoreError: no such class, or an argument that is out of range.
        """
        options = {"min_share": min_share, "min_area": min_area, "max_regions": max_regions}
        return self._map_boxes([label], self.heatmap(label), share, options)[label]

    def find_boxes(
        self, label: str, share: float | None = None, *, min_area: float = 0.0, max_regions: int | None = None
    ) -> list[Region]:
        """The boxes of a class's objects: of the head's box layer if it has one, else those of `boxes_from_map`.

        Pictures, tables, COCO's results and supervision's detections have these boxes.

        Args:
            label: a class name.
            share: threshold, as a share of the best box's score, 0.1 by default; without a box layer, as for
                `boxes_from_map`.
            min_area: least area in pixels of all boxes but the first.
            max_regions: most boxes.

        Returns:
            Boxes, best first.

        Raises:
            DensescoreError: as for `boxes_from_map`.
        """
        return self.class_boxes([label], share, min_area=min_area, max_regions=max_regions)[label]

    def class_boxes(
        self,
        labels: Sequence[str],
        share: float | None = None,
        *,
        min_area: float = 0.0,
        max_regions: int | None = None,
        maps: NDArray[np.float32] | None = None,
    ) -> dict[str, list[Region]]:
        """`find_boxes` of several classes; `maps` are their heatmaps ``[len(labels), H, W]``, if computed."""
        if not labels:
            return {}
        options: dict[str, Any] = {"min_area": min_area, "max_regions": max_regions}
        if self.object_boxes is None:
            heatmaps = self.heatmap(labels) if maps is None else torch.from_numpy(maps)
            return self._judge_boxes(self._map_boxes(labels, heatmaps, share, options))
        index = self._on_device([self.index(label) for label in labels])  # [n]
        patches, *rest = (part[index] for part in self.object_boxes)  # [n, K], [n, K, 4], [n, K]
        parts = (rest[0], self.patch_scores[patches, index[:, None]], rest[1], self.confidence()[index])
        boxes, scores, qualities, confidence = (part.cpu() for part in parts)
        found = {
            label: regions.layer_regions(boxes[n], scores[n], qualities[n], confidence[n], share, **options)
            for n, label in enumerate(labels)
        }
        return self._judge_boxes(found)

    def _judge_boxes(self, found: dict[str, list[Region]]) -> dict[str, list[Region]]:
        """The same boxes, with their probabilities."""
        shown = self.select([*found]).image_probabilities()
        if self.calibration is None or shown is None:
            return found
        curve = self.calibration.boxes
        judged = {}
        for (label, boxes), of_class in zip(found.items(), shown.tolist(), strict=True):
            if curve is not None:
                values = curve(np.array([box.score for box in boxes])).tolist()
            else:
                values = [of_class * box.peak / max(boxes[0].peak, 1e-12) for box in boxes]
            judged[label] = (
                boxes
                if math.isnan(of_class)
                else [box._replace(probability=value) for box, value in zip(boxes, values, strict=True)]
            )
        return judged

    def _map_boxes(
        self, labels: Sequence[str], maps: Tensor, share: float | None, options: Mapping[str, Any]
    ) -> dict[str, list[Region]]:
        confidence = _confidence(self.columns(labels), self.k).tolist()
        return {
            label: regions.find_regions(values, share, confidence=certainty, **options)
            for label, values, certainty in zip(labels, maps.cpu().numpy(), confidence, strict=True)
        }

    # Other forms

    def to_row(
        self, top: int = 5, labels: Sequence[str] | None = None, maps: NDArray[np.float32] | None = None
    ) -> dict[str, Any]:
        """Plain values, as ``pandas.DataFrame([scores.to_row(), …])`` takes them.

        Args:
            top: number of classes to rank.
            labels: classes whose regions to list; the best one by default.
            maps: heatmaps of `labels`, ``[len(labels), H, W]``, if computed already.

        Returns:
            ``height``, ``width``, ``patches``; ``label``, ``score``, ``confidence``, ``probability`` and ``answer`` of
            the best class, and its ``best_patch``: ``x0 y0 x1 y1`` in image pixels and ``score``; ``labels``,
            ``scores``, ``confidences``, ``best_patch_scores``, ``probabilities`` and ``answers`` of the ranked
            classes, None without calibration; ``regions``, class by class, highest peak first: ``label``,
            ``x0 y0 x1 y1`` (``x1`` and ``y1`` exclusive), ``peak``, ``score`` and ``probability`` (see `Region`).

        Raises:
            DensescoreError: `top` is below 1, or no such class.

        Example:
            >>> import densescore, skimage
            >>> row = densescore.classify(skimage.data.chelsea(), scales=(1, 1.3)).to_row(top=2)
            >>> row["label"], row["labels"]
            ('Egyptian cat', ['Egyptian cat', 'tiger cat'])
            >>> [*row["regions"][0]]
            ['label', 'x0', 'y0', 'x1', 'y1', 'peak', 'score', 'probability']
        """
        ranked = self.top(top)
        if not ranked:
            raise DensescoreError(f"top must be at least 1, got {top}")
        best = int(self.patch_scores[:, self.index(ranked[0].label)].argmax())
        boxes = self.class_boxes([ranked[0].label] if labels is None else labels, maps=maps)
        size = {"height": self.pyramid.height, "width": self.pyramid.width, "patches": len(self)}
        return size | formats.ranking_row(ranked, self.pyramid.boxes()[best].tolist(), boxes)

    def to_df(self, labels: str | Sequence[str] | None = None) -> "DataFrame":
        """A row per patch and class, as a pandas DataFrame.

        Args:
            labels: a class or classes; the best one by default.

        Returns:
            ``label``, ``patch`` (its row in ``patch_scores``), ``score``, ``scale`` and ``x0 y0 x1 y1`` in image
            pixels, not clipped to the image.

        Raises:
            DensescoreError: no such class, or pandas is not installed.

        Example:
            >>> import densescore, skimage
            >>> table = densescore.classify(skimage.data.chelsea(), scales=(1, 2)).to_df(["Egyptian cat", "tabby"])
            >>> best = table.loc[table.groupby("label")["score"].idxmax()]
            >>> best["label"].tolist(), (best["score"] > 0.1).tolist()
            (['Egyptian cat', 'tabby'], [True, True])
        """
        names = self._names(labels)
        columns = self.columns(names).cpu().numpy()  # [M, len(names)]
        return formats.patch_table(names, columns, self.pyramid.boxes(), patch_scales(self.pyramid))

    def to_supervision(self, labels: str | Sequence[str] | None = None, share: float | None = None) -> "Detections":
        """Regions as ``supervision.Detections`` (extra ``train``), for its annotators, filters and metrics.

        Args:
            labels: a class or classes; the best one by default.
            share: see `find_boxes`.

        Returns:
            ``xyxy`` in image pixels; ``confidence``, `Region.shown`; ``class_id``, the column of ``patch_scores``, or
            for groups of classes C, C + 1 and so on; ``data["class_name"]``.

        Raises:
            DensescoreError: no such class, or supervision is not installed.
        """
        names = self._names(labels)
        return formats.detections(self.class_boxes(names, share), self._ids(names))

    def to_coco(
        self,
        image_id: int,
        labels: str | Sequence[str] | None = None,
        *,
        category_ids: Mapping[str, int] | None = None,
        share: float | None = None,
    ) -> list[dict[str, Any]]:
        """Regions in the format of COCO's results: ``COCO.loadRes`` reads the joined lists of all images.

        Args:
            image_id: the image's id in the set.
            labels: a class or classes; the best one by default.
            category_ids: ids of the set's classes; by default the columns of ``patch_scores``, and for groups of
                classes C, C + 1 and so on.
            share: see `find_boxes`.

        Returns:
            ``image_id``, ``category_id``, ``bbox`` (``x y width height`` in image pixels) and ``score``
            (`Region.shown`), plain numbers, ready for ``json.dump``.

        Raises:
            DensescoreError: no such class, or one that `category_ids` lacks.
        """
        names = self._names(labels)
        ids = self._ids(names) if category_ids is None else category_ids
        return formats.coco_results(image_id, self.class_boxes(names, share), ids)

    def _ids(self, names: Sequence[str]) -> dict[str, int]:
        """Each class's column, and numbers from C on for groups of classes."""
        return {label: number for number, label in enumerate(dict.fromkeys([*self.labels, *names]))}

    # Pictures

    def photograph(self, image: ImageLike | None = None) -> Pixels:
        """The pixels that were scored: RGB ``[H, W, 3]``.

        Args:
            image: the photograph, if the scores do not hold it (see `source`).

        Raises:
            DensescoreError: no photograph, an unreadable one, or one of another size.
        """
        source = self.source if image is None else image
        if source is None:
            raise DensescoreError(
                "these scores do not hold their photograph: they were loaded from a file, or are of one image of many; "
                "pass it as image="
            )
        return read_sized(source, (self.pyramid.height, self.pyramid.width))

    def overlay(
        self, label: str | None = None, *, image: ImageLike | None = None, **style: "Unpack[StyleOptions]"
    ) -> Pixels:
        """The photograph with a class's heatmap, without marks, for pictures of your own: uint8 ``[H, W, 3]``.

        The arguments and errors are those of `plot`.

        Example:
            >>> import densescore, skimage
            >>> densescore.classify(skimage.data.chelsea(), scales=(1, 1.3)).overlay("Egyptian cat").shape
            (300, 451, 3)
        """
        from densescore.results import draw

        options, pixels = draw.Style(**style), self.photograph(image)
        view = self.class_map(label or self._names(None)[0], draw.PICTURE_SIDE)
        return draw.paint(pixels, view, options, (pixels.shape[1], pixels.shape[0]), marks=False)

    def plot(
        self,
        label: str | None = None,
        *,
        image: ImageLike | None = None,
        ax: "Axes | None" = None,
        **style: "Unpack[StyleOptions]",
    ) -> "Figure":
        """Draw where a class is: its heatmap over the photograph, as ``densescore heatmap`` does.

        The map fades out where the class does not respond. A line marks half of the peak, a cross the peak (`locate`),
        frames the boxes. The title is the answer. A class that is absent is not drawn.

        Args:
            label: a class name; the best class by default.
            image: the photograph, if the scores do not hold it (see `source`).
            ax: matplotlib's axes to draw on, in pixels of the image; by default a new figure, apart from pyplot.
            style: ``colors``, ``"relative"``, ``"absolute"`` (comparable between pictures) or ``"rescaled"`` (see
                `densescore.results.draw.Colors`); ``opacity`` of the color at the peak, in [0, 1]; ``colormap``, one of
                matplotlib's; ``colorbar``, whether there is one; ``min_confidence``, least probability of a box.

        Returns:
            The figure. A notebook shows it; ``savefig`` writes it.

        Raises:
            DensescoreError: no such class, no photograph or not the one that was scored, or an unknown choice.

        Example:
            >>> import densescore, skimage
            >>> figure = densescore.classify(skimage.data.chelsea(), scales=(1, 1.3)).plot("Egyptian cat")
            >>> figure.axes[0].get_title()
            'Egyptian cat, confidence 0.37'
        """
        from densescore.results import draw

        options = draw.Style(**style)
        pixels, view = self.photograph(image), self.class_map(label or self._names(None)[0], draw.PICTURE_SIDE)
        if ax is None:
            return draw.plot_map(pixels, view, options)
        draw.draw_map(ax, pixels, view, options)
        ax.set_title(view.title, parse_math=False)
        return cast("Figure", ax.figure)

    def plot_sheet(
        self,
        labels: str | Sequence[str] | None = None,
        *,
        top: int = 6,
        image: ImageLike | None = None,
        **style: "Unpack[StyleOptions]",
    ) -> "Picture":
        """Draw the photograph and the heatmaps of several classes side by side; absent classes are gray.

        `labels` are class names, by default the `top` best ones. Each panel has its own scale; ``shared_scale=True``
        gives them one, as in the paper's Figure 1. The other arguments and the errors are those of `plot`.
        """
        from densescore.results import draw

        options = draw.Style(**style)
        chosen = self.select([best.label for best in self.top(top)] if labels is None else labels)
        if not chosen.labels:
            raise DensescoreError("a sheet needs at least one class, got none")
        views = [chosen.class_map(label, draw.PANEL_SIDE) for label in chosen.labels]
        return draw.sheet(self.photograph(image), views, options)

    def save_heatmap(
        self,
        path: str | os.PathLike[str],
        label: str | None = None,
        *,
        image: ImageLike | None = None,
        overwrite: bool = False,
        **style: "Unpack[StyleOptions]",
    ) -> None:
        """Write the picture of `plot` to a file (``….png``, ``….jpg``, ``….pdf``, …), whole or not at all.

        `overwrite` replaces an existing file, never the photograph itself. The other arguments are those of `plot`.

        Raises:
            DensescoreError: as for `plot`; unknown format; or the file exists and `overwrite` is off.
        """
        files = [each for each in (self.source, image) if isinstance(each, str | os.PathLike)]
        cast("Picture", self.plot(label, image=image, **style)).save(path, overwrite=overwrite, inputs=files)

    def __repr__(self) -> str:
        best = ", ".join(f"{ranked.label!r} {ranked.confidence:.2g}" for ranked in self.top(3))
        return f"DenseScores({self.model!r}; {describe_patches(self.pyramid)}; best {best})"

    def _repr_html_(self) -> str:
        """For notebooks: the line, the best classes, and the picture if there is a photograph."""
        return formats.notebook_html(self.model, describe_patches(self.pyramid), self.top(5), self._picture_tag())

    def _picture_tag(self) -> str:
        if self.source is None:
            return ""
        try:
            picture = cast("Picture", self.plot())
        except DensescoreError as error:  # the file is gone, or another one
            return formats.paragraph(str(error))
        return formats.picture_tag(picture.encode("jpeg"), picture.axes[0].get_title())

    def _repr_png_(self) -> bytes | None:
        """For notebooks that show no HTML: the picture, or None without a photograph."""
        try:
            return cast("Picture", self.plot()).encode()
        except DensescoreError:
            return None

    # Files

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write to a safetensors file, whole or not at all; `load` reads it back.

        Raises:
            DensescoreError: the file exists and `overwrite` is off.
        """
        fields = ("labels", "k", "model", "context", "runtime", "timings", "retried")
        description = {"pyramid": asdict(self.pyramid), **{name: getattr(self, name) for name in fields}}
        description["calibration"] = None if self.calibration is None else asdict(self.calibration)
        tensors = {"patch_scores": self.patch_scores}
        if self.calibrated_inputs is not None:
            tensors["calibrated_inputs"] = self.calibrated_inputs
        stored.write(path, tensors, self.object_boxes, description, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DenseScores":
        """Read what `save` wrote.

        Raises:
            DensescoreError: not such a file.
        """
        tensors, boxes, description = stored.read(path)
        with stored.named_faults(path):
            pyramid = description.pop("pyramid")
            levels = tuple(Level(**level) for level in pyramid.pop("levels"))
            description["labels"] = tuple(description["labels"])
            if description.get("calibration"):
                description["calibration"] = Calibration.from_json(description["calibration"])
            fields: dict[str, Any] = {**tensors, **description}
            return cls(pyramid=Pyramid(**pyramid, levels=levels), object_boxes=boxes, **fields)


def best_patches(scores: DenseScores, label: str, count: int = 6) -> list[BestPatch]:
    """The different patches that add most to a class's image score, most first: none overlaps a better one by much.

    By eq. (1) the image's score is ``Σ y_i^k / M``, so a patch's share of it is ``y_i^k / Σ y_j^k``, over all patches.

    Args:
        scores: scores of one image.
        label: a class name, or a group's.
        count: most patches.

    Example:
        >>> import densescore, skimage
        >>> best = best_patches(densescore.classify(skimage.data.chelsea(), scales=(1, 2.4)), "Egyptian cat")
        >>> best[0].score > best[-1].score
        True
    """
    return rank_patches(scores.columns(label)[:, 0].cpu().numpy(), scores.pyramid, scores.k, count)


def _confidence(patch_scores: Tensor, k: float) -> Tensor:
    """`DenseScores.confidence` of patch scores ``[M, C]``: ``[C]``."""
    best = patch_scores.amax(0)  # [C]
    relative = patch_scores / torch.where(best > 0, best, 1)
    return best * power_mean(relative, k=k)[0] ** (1 / k)
