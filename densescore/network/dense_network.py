"""A classifier in four parts that can run over a whole image; `densescore.network.surgery` makes it."""

from torch import Tensor, fx, nn

from densescore.errors import DensescoreError
from densescore.network.finer_stride import with_phases
from densescore.network.windows import Blocks, Windows


class DenseNetwork(nn.Module):
    """A classifier in four parts that can run over a whole image.

    Attributes:
        trunk: ``[1, 3, P + nS, P + mS]`` pixels → ``[1, C, h + n, w + m]`` feature map.
        project: blocks of feature maps → one row per window: its average, its flattened values, or FC6's outputs.
        level_trunk: the trunk over levels, ``[1, 3, …]`` → ``[phases², C, …]``. It is `trunk` itself, unless the
            network was made finer.
        fast_trunk: what computes `level_trunk`: that module itself, or a numerically equivalent, faster one (see
            `densescore.network.cpu.accelerate`).
        embed: rows → ``[N, D]`` features, in the form that the classifier takes.
        to_features: the identity: what the classifier takes are the features, unlike those of a `CropNetwork`.
        classifier: ``[N, D]`` features → ``[N, classes]`` logits.
        patch: P, side of the network's input in pixels.
        stride: S, pixels of input from one cell to the next.
        phases: cells per position of the feature map along each axis; 1, unless the network was made finer.
        window: (h, w) of the feature map that one patch gives.
        window_width: numbers that one window takes while it is projected.
        feature_width: D, the width of the features: FC7's, or the pooled channels'.
        classes: number of logits.
        contexts: what a patch may see past its own border: the real image, or nothing (a crop).
        level_context: names of the layers that average over all that the trunk sees (squeeze-and-excitation, norms that
            take their statistics from the map), so that the cells of a level share its context.
    """

    contexts = ("image", "patch")

    def __init__(
        self,
        trunk: nn.Module,
        project: nn.Module,
        embed: nn.Module,
        classifier: nn.Module,
        *,
        patch: int,
        stride: int,
        window: tuple[int, int],
        window_width: int,
        feature_width: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.trunk, self.project, self.embed, self.classifier = trunk, project, embed, classifier
        self.level_trunk, self.fast_trunk = trunk, trunk
        self.to_features: nn.Module = nn.Identity()
        self.patch, self.stride, self.phases, self.window = patch, stride, 1, window
        self.window_width, self.feature_width, self.classes = window_width, feature_width, classes
        self.level_context: tuple[str, ...] = ()

    @property
    def below_classifier(self) -> tuple[nn.Module, ...]:
        """The layers that the features follow from."""
        return self.trunk, self.project, self.embed

    def replace_classifier(self, head: nn.Module, features: int, classes: int) -> None:
        """Replace FC8 by an adaptation head (FCa, FCb).

        Raises:
            DensescoreError: the head takes features of another width than this network gives.
        """
        if features != self.feature_width:
            raise DensescoreError(f"the head takes {features} features, but the network gives {self.feature_width}")
        self.classifier, self.classes = head, classes

    def make_finer(self, stride: int) -> None:
        """Place cells `stride` pixels apart, by offset pooling (see `finer_stride`). Crops are scored as before.

        Raises:
            DensescoreError: `stride` does not divide the network's, or a layer cannot be run in phases.
        """
        assert isinstance(self.trunk, fx.GraphModule)
        self.level_trunk = self.fast_trunk = with_phases(self.trunk, self.patch, self.stride, stride)
        self.stride, self.phases = stride, self.stride // stride

    def block(self, feature_map: Tensor, rows: range, cols: range) -> Tensor:
        """The part of a level's map that a block of its cells sees: ``[1, C, rows + h - 1, cols + w - 1]``."""
        height, width = self.window
        return feature_map[:, :, rows.start : rows.stop + height - 1, cols.start : cols.stop + width - 1]

    def embed_blocks(self, blocks: Blocks) -> Tensor:
        """Features of all cells of some blocks, in order: ``[cells, D]``."""
        return self.embed(self.project(blocks))

    def windows(self, maps: Tensor) -> Tensor:
        """The windows of maps ``[N, C, …]``, before any is embedded: ``[N, rows, cols, …]``."""
        return self._project.grid(maps)

    def embed_windows(self, windows: Tensor) -> Tensor:
        """Features of some of `windows`: ``[cells, …]`` → ``[cells, D]``."""
        return self.embed(self._project.rows(windows))

    @property
    def _project(self) -> Windows:
        assert isinstance(self.project, Windows)  # a CPU's faster layers take blocks
        return self.project

    def embed_crops(self, crops: Tensor) -> Tensor:
        """Features of crops, as the original network has them: ``[N, 3, P, P]`` → ``[N, D]``."""
        return self.embed(self.project(self.trunk(crops).split(1)))

    def forward(self, crops: Tensor) -> Tensor:
        """Score crops as the original network does: ``[N, 3, P, P]`` → ``[N, classes]`` logits."""
        return self.classifier(self.embed_crops(crops))
