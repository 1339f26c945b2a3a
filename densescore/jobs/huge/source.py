"""Huge images on disk, read by windows: TIFF, BigTIFF, GeoTIFF, whole-slide TIFFs, and zarr."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError
from densescore.io.samples import Samples
from densescore.io.tiff import Windows, choose_channels, describe, main_level

MAX_CHUNK = 2**28
"""Maximum bytes of a stored piece (tile, strip or chunk), which is decoded whole."""

_GEOTIFF = (33550, 33922, 34264, 34735, 34736, 34737)  # ModelPixelScale … GeoAsciiParams
GeoTag: TypeAlias = tuple[int, int, int, Any, bool]
"""Code, type, count, value, written once: tifffile's form of a tag."""

_TRANSPARENCY = 2
_AXES = {
    "y": ("y", "row", "rows", "height", "lat", "latitude", "northing"),
    "x": ("x", "col", "cols", "column", "columns", "width", "lon", "longitude", "easting"),
    "c": ("c", "ch", "channel", "channels", "b", "band", "bands", "s", "sample", "samples", "rgb", "rgba", "color"),
}
"""Axis → its names in zarr arrays."""


@dataclass(frozen=True)
class HugeImage(Windows):
    """An open image; `read` gives a window of it, `height` and `width` its size upright."""

    geotags: tuple[GeoTag, ...] = ()  # of GeoTIFF


@contextmanager
def open_huge(path: str | os.PathLike[str], bands: Sequence[int] | None = None) -> Iterator[HugeImage]:
    """Open a TIFF (of a pyramid, the full size) or a zarr array (of an OME-Zarr group, the full size).

    Windows hold the pixels that `densescore.read_image` gives of the whole; docs/files.md says what is read.

    Args:
        path: path of the file or the zarr folder.
        bands: channels, from 0, to read as gray, or as red, green and blue; needed for images other than gray, RGB or
            RGB with transparency.

    Raises:
        DensescoreError: no or several images, channels that need `bands`, nearly black (see `read_image`), or
            pieces too large to be read by windows.
    """
    path = Path(path)
    if not path.exists():
        raise DensescoreError(f"{path}: no such file or folder")
    try:
        import tifffile
        import zarr
        from zarr.codecs import ZstdCodec

        ZstdCodec()  # compresses scores; raises for an old numcodecs
    except Exception as error:  # none, or zarr with an old numcodecs or NumPy
        hint = "pip install --upgrade 'densescore[huge]' zarr numcodecs tifffile"
        raise DensescoreError(f"huge images need tifffile and zarr: {hint} ({error})") from error
    with ExitStack() as stack:
        geotags: tuple[GeoTag, ...] = ()
        try:
            if path.is_dir():
                image = _open_zarr(path, zarr, bands)
            else:
                tiff = stack.enter_context(tifffile.TiffFile(path))
                level = main_level(tiff, str(path))
                image = describe(tiff, level, str(path), bands)
                geotags = _geotags(level.keyframe, image)
                image = replace(image, array=_open_level(path, tiff, level, stack))
        except DensescoreError:
            raise
        except Exception as error:
            raise DensescoreError(f"{path}: cannot be opened as a TIFF or zarr image: {error}") from error
        _check_pieces(image)
        image.check_brightness()
        yield HugeImage(**vars(image), geotags=geotags)


def _open_zarr(path: Path, zarr: Any, bands: Sequence[int] | None) -> Windows:
    array, named = zarr.open(path, mode="r"), None
    if hasattr(array, "shape"):
        named = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    else:
        described = array.attrs.get("ome", array.attrs).get("multiscales")
        if not described:
            raise DensescoreError(f"{path}: a zarr group; expected OME-Zarr (multiscales), or PATH/ARRAY")
        named = [axis["name"] if isinstance(axis, dict) else axis for axis in described[0].get("axes", "tczyx")]
        array = array[described[0]["datasets"][0]["path"]]
    axes = "".join(map(_axis, named)) if named and all(named) else _usual_axes(array.shape)
    kind = np.dtype(array.dtype).newbyteorder("=")
    if kind not in (np.uint8, np.uint16) and not np.issubdtype(kind, np.floating):
        raise DensescoreError(f"{path}: pixels are {kind}; expected uint8, uint16 or floats in [0, 1]")
    rgba = named is None and axes == "yxc" and array.shape[2] == 4 and bands is None
    samples = Samples("RGB" if rgba else "gray", white=65535 if kind == np.uint16 else None)
    return choose_channels(Windows(str(path), array, axes, samples), (_TRANSPARENCY,) if rgba else (), bands)


def _axis(name: str) -> str:
    """The letter of a zarr array's axis."""
    for letter, names in _AXES.items():
        if name.lower() in names:
            return letter
    return "?" if name[0] in "yxcs" else name[0]


def _usual_axes(shape: tuple[int, ...]) -> str:
    """Axes of an array without names: channels are last if there are at most 4, else on the shorter end."""
    if len(shape) != 3:
        return {2: "yx"}.get(len(shape), "?" * len(shape))
    return "yxc" if shape[2] <= 4 or shape[2] < shape[0] else "cyx"


def _open_level(path: Path, tiff: Any, level: Any, stack: ExitStack) -> Any:
    """An array that reads windows of a level of a TIFF."""
    import zarr

    if level.keyframe.is_memmappable and level.dataoffset is not None:
        return _Mapped(path, level.dtype.newbyteorder(tiff.byteorder), level.dataoffset, level.shape)
    return zarr.open_array(stack.enter_context(level.aszarr(level=0)), mode="r")


class _Mapped:
    """Uncompressed pixels in a file, mapped again for each window, so that memory does not grow."""

    def __init__(self, path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.offset, self.shape = path, dtype, offset, shape
        self.chunks = (1,) * len(shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return np.array(np.memmap(self.path, self.dtype, "r", self.offset, self.shape)[index])


def _geotags(page: Any, image: Windows) -> tuple[GeoTag, ...]:
    """GeoTIFF tags of the image's page; an error if it is turned, and would lie elsewhere."""
    tags = [page.tags[code] for code in _GEOTIFF if code in page.tags]
    if tags and image.orientation != 1:
        raise DensescoreError(f"{image.name}: georeferenced, but its orientation is {image.orientation}; expected 1")
    return tuple((tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags)


def _check_pieces(image: Windows) -> None:
    piece = int(np.prod(image.array.chunks)) * image.array.dtype.itemsize
    if piece > MAX_CHUNK:
        raise DensescoreError(
            f"{image.name}: stored in pieces of {piece / 1e6:,.0f} MB, which must be decoded whole: store it in tiles, "
            "e.g. with vips tiffsave --tile, or gdal_translate -co TILED=YES"
        )
