"""How scores show themselves: as a line, as pictures, and in notebooks."""

import base64
import html
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from densescore.errors import DensescoreError
from densescore.io.images import ImageLike, Pixels, read_image
from densescore.io.names import as_text
from densescore.results.patches import describe_patches

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from densescore.results.overlay import Colors
    from densescore.results.picture import Picture
    from densescore.results.scores import DenseScores


class Shown:
    """The part of `DenseScores` that shows it."""

    @property
    def _scores(self) -> "DenseScores":
        return cast("DenseScores", self)

    def plot(
        self,
        label: str | None = None,
        *,
        image: ImageLike | None = None,
        ax: "Axes | None" = None,
        colors: "Colors" = "relative",
        opacity: float = 0.65,
        colormap: "str | Colormap" = "turbo",
    ) -> "Figure":
        """Draw where a class is: its response map over the photograph, as ``densescore heatmap`` does.

        The map fades out where the class does not respond. A line marks half of the peak, a cross the most likely
        location (`locate`), a dashed frame the region around it; the title says how high the peak is.

        Args:
            label: a class name; the best class by default.
            image: the photograph, where the scores do not hold it (see `source`).
            ax: matplotlib's axes to draw on, in pixels of the image; by default a new figure, apart from pyplot.
            colors: ``"relative"``, ``"absolute"`` (comparable between pictures) or ``"rescaled"``; see
                `densescore.results.overlay.Colors`.
            opacity: of the color at the peak, in [0, 1].
            colormap: of matplotlib.

        Returns:
            The figure. A notebook shows it; ``savefig`` writes it.

        Raises:
            DensescoreError: no such class, no photograph or not the one that was scored, or an unknown choice.

        Example:
            >>> import densescore, skimage
            >>> figure = densescore.classify(skimage.data.chelsea(), scales=(1, 1.3)).plot("Egyptian cat")
            >>> figure.axes[0].get_title().split(",")[0]
            'Egyptian cat: strong response'
        """
        from densescore.results.overlay import check_look, describe_peak, draw_map, overlay

        scores, label, pixels = self._scores, self._best(label), self.photograph(image)
        if ax is None:
            return overlay(pixels, scores, label, colors=colors, opacity=opacity, colormap=colormap)
        check_look(colors, opacity, colormap)
        draw_map(ax, pixels, scores, label, colors=colors, opacity=opacity, colormap=colormap)
        ax.set_title(describe_peak(scores, label), parse_math=False)
        return cast("Figure", ax.figure)

    def plot_sheet(
        self,
        labels: str | Sequence[str] | None = None,
        *,
        top: int = 6,
        image: ImageLike | None = None,
        colors: "Colors" = "relative",
        opacity: float = 0.65,
        colormap: "str | Colormap" = "turbo",
    ) -> "Picture":
        """Draw the photograph and the maps of several classes side by side, on one scale: the paper's Figure 1.

        Args:
            labels: class names; by default the best ones.
            top: without `labels`: as many of the best classes.
            image: as for `plot`.
            colors: as for `plot`, without ``"rescaled"``.
            opacity: as for `plot`.
            colormap: as for `plot`.

        Raises:
            DensescoreError: as for `plot`.
        """
        from densescore.results.sheet import sheet

        names = [best.label for best in self._scores.top(top)] if labels is None else labels
        names = [names] if isinstance(names, str) else names
        return sheet(self.photograph(image), self._scores, names, colors=colors, opacity=opacity, colormap=colormap)

    def save_heatmap(
        self,
        path: str | os.PathLike[str],
        label: str | None = None,
        *,
        image: ImageLike | None = None,
        colors: "Colors" = "relative",
        opacity: float = 0.65,
        colormap: "str | Colormap" = "turbo",
        overwrite: bool = False,
    ) -> None:
        """Write the picture of `plot` to a file, whole or not at all.

        Args:
            path: ``….png``, ``….jpg``, ``….pdf``, …: the suffix names the form.
            label: as for `plot`.
            image: as for `plot`.
            colors: as for `plot`.
            opacity: as for `plot`.
            colormap: as for `plot`.
            overwrite: replace what is there; never the photograph itself.

        Raises:
            DensescoreError: as for `plot`; no such form; or the file exists and `overwrite` is off.
        """
        from densescore.results.overlay import overlay

        scores, pixels = self._scores, self.photograph(image)
        picture = overlay(pixels, scores, self._best(label), colors=colors, opacity=opacity, colormap=colormap)
        files = [given for given in (scores.source, image) if isinstance(given, str | os.PathLike)]
        picture.save(path, overwrite=overwrite, inputs=files)

    def photograph(self, image: ImageLike | None = None) -> Pixels:
        """The pixels that were scored: RGB ``[H, W, 3]``.

        Args:
            image: the photograph, where the scores do not hold it (see `source`).

        Raises:
            DensescoreError: the scores do not hold it and none is given; it cannot be read; or it has another size.
        """
        given = self._scores.source if image is None else image
        if given is None:
            raise DensescoreError(
                "these scores do not hold their photograph: they were loaded from a file, or are of one image of many; "
                "pass it as image="
            )
        pixels = read_image(given)
        expected = (self._scores.pyramid.height, self._scores.pyramid.width)
        if pixels.shape[:2] != expected:
            name = f"{os.fspath(given)}" if isinstance(given, str | os.PathLike) else "image"
            raise DensescoreError(f"{name}: expected the {expected} pixels that were scored, got {pixels.shape[:2]}")
        return pixels

    def _best(self, label: str | None) -> str:
        return self._scores.top(1)[0].label if label is None else label

    def __repr__(self) -> str:
        scores = self._scores
        best = ", ".join(f"{found.label!r} {found.confidence:.2g}" for found in scores.top(3))
        return f"DenseScores({scores.model!r}; {describe_patches(scores.pyramid)}; best {best})"

    def _repr_html_(self) -> str:
        """For notebooks: the line, the best classes, and the picture where there is a photograph."""
        scores = self._scores
        rows = "".join(
            f"<tr><td><bdi>{html.escape(as_text(found.label))}</bdi></td><td>{found.confidence:.2g}</td>"
            f"<td>{found.best_patch:.2g}</td><td>{found.score:.2g}</td></tr>"
            for found in scores.top(5)
        )
        model = html.escape(as_text(scores.model))
        return (
            f"<div><p><b>{model}</b> {describe_patches(scores.pyramid)}</p>"
            '<div style="display: flex; flex-wrap: wrap; gap: 1.5em; align-items: flex-start">'
            "<table><thead><tr><th>class</th><th>confidence</th><th>best patch</th><th>score</th></tr></thead>"
            f"<tbody>{rows}</tbody></table>{self._picture_tag()}</div></div>"
        )

    def _picture_tag(self) -> str:
        if self._scores.source is None:
            return ""
        from densescore.results.overlay import describe_peak, overlay

        label = self._best(None)
        try:
            picture = overlay(self.photograph(), self._scores, label)
        except DensescoreError as error:  # the file is gone, or another one
            return f"<p>{html.escape(as_text(str(error)))}</p>"
        data = base64.b64encode(picture.encode("jpeg")).decode()
        alt = html.escape(describe_peak(self._scores, label))
        return f'<img src="data:image/jpeg;base64,{data}" alt="{alt}" style="max-width: min(100%, 720px)">'

    def _repr_png_(self) -> bytes | None:
        """For notebooks that show no HTML: the picture; None where there is no photograph."""
        from densescore.results.overlay import overlay

        try:
            return overlay(self.photograph(), self._scores, self._best(None)).encode()
        except DensescoreError:
            return None
