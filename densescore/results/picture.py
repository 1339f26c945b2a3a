"""A matplotlib figure that shows itself in notebooks and is saved whole or not at all."""

import io
import os
from collections.abc import Iterable
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from densescore.errors import DensescoreError
from densescore.io.files import atomic_write


class Picture(Figure):
    """A figure apart from pyplot: a notebook shows it, and it is freed when nobody holds it.

    Args:
        width: in pixels.
        height: in pixels.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
        FigureCanvasAgg(self)

    def encode(self, form: str = "png") -> bytes:
        """The bytes of the picture's file, of a form that matplotlib knows."""
        file = io.BytesIO()
        self.savefig(file, format=form)
        return file.getvalue()

    def _repr_png_(self) -> bytes:
        return self.encode()

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        inputs: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        """Write the picture to a file whose suffix names its form, whole or not at all.

        Args:
            path: ``….png``, ``….jpg``, ``….pdf``, ``….svg``, …
            overwrite: replace what is there.
            inputs: files that are never replaced, such as the photograph.

        Raises:
            DensescoreError: no such form, or `path` exists and may not be replaced.
        """
        form, known = Path(path).suffix.lower().removeprefix("."), self.canvas.get_supported_filetypes()
        if form not in known:
            raise DensescoreError(f"{path}: a picture's name ends in one of {', '.join(f'.{name}' for name in known)}")
        with atomic_write(path, overwrite=overwrite, inputs=inputs) as temporary:
            self.savefig(temporary, format=form)
