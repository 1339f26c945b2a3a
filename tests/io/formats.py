"""One table of picture formats: files that other libraries write, and the pixels that a viewer shows of them."""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

tifffile: Any = pytest.importorskip("tifffile")
imagecodecs: Any = pytest.importorskip("imagecodecs")
zarr: Any = pytest.importorskip("zarr")

Array: TypeAlias = NDArray[Any]
Writer: TypeAlias = Callable[[Path], Any]
H, W = 37, 53
_random = np.random.default_rng(0)
RGB: Array = _random.integers(0, 256, (H, W, 3), dtype=np.uint8)
RGB16: Array = _random.integers(0, 65536, (H, W, 3), dtype=np.uint16)
GRAY, GRAY16, ALPHA = RGB[..., 0], RGB16[..., 0], RGB[::-1, ..., 1]
SMOOTH: Array = cv2.resize(RGB[:3, :4] // 2 + 60, (W, H), interpolation=cv2.INTER_LINEAR)  # what JPEG keeps
INDEX: Array = (GRAY // 64).astype(np.uint8)
COLORS: Array = _random.integers(0, 256, (256, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Case:
    """A file and its pixels."""

    kind: str  # a row of docs/files.md
    name: str
    write: Writer
    expected: Array | str  # [H, W] or [H, W, 3], uint8 or floats in [0, 1]; or the error's message
    tolerance: float = 0  # of 255
    huge: bool = True  # `open_huge` opens it too
    suffix: str = ".tif"

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def over_white(color: Array, alpha: Array) -> Array:
    """Both in [0, 1], in float64, by the definition."""
    return color * alpha[..., None] + 1 - alpha[..., None]


def unit(values: Array, white: float | None = None) -> Array:
    """[0, 1], in float64."""
    return values / (white or np.iinfo(values.dtype).max)


def eight_bits(values: Array) -> Array:
    """[0, 1] as uint8."""
    return np.rint(values * 255).astype(np.uint8)


def turned(values: Array, orientation: int) -> Array:
    """As EXIF defines it: where the stored first row and column belong."""
    turns: dict[int, Callable[[Array], Array]] = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2), 8: lambda a: np.rot90(a),
    }  # fmt: skip
    return turns[orientation](values)


def tiff(data: Array, **options: Any) -> Writer:
    return lambda path: tifffile.imwrite(path, data, **{"metadata": None, **options})


def pillow(image: Image.Image, **options: Any) -> Writer:
    return lambda path: image.save(path, **options)


def imwrite(data: Array, *options: int) -> Writer:
    """A file by OpenCV, whose colors are BGR."""
    channels = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    stored = data if data.ndim == 2 else data[..., channels[data.shape[2]]]
    return lambda path: cv2.imwrite(str(path), stored, options)


# --- TIFF ---

LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {},
    "tiles": {"tile": (16, 32)},
    "one tile": {"tile": (64, 64)},
    "deflate": {"compression": "zlib", "rowsperstrip": 8},
    "LZW tiles, predictor": {"compression": "lzw", "tile": (16, 16), "predictor": True},
    "big-endian": {"byteorder": ">"},
    "big-endian deflate": {"byteorder": ">", "compression": "zlib"},
    "BigTIFF": {"bigtiff": True, "rowsperstrip": 5},
}


def tiff_depths() -> Iterator[Case]:
    """Photometrics × depths × layouts × planes × transparency."""
    depths: dict[str, Callable[[Array], Array]] = {
        "8 bits": lambda a: (a >> 8).astype(np.uint8),
        "16 bits": lambda a: a,
        "half": lambda a: (a / 65535).astype(np.float16),
        "float": lambda a: (a / 65535).astype(np.float32),
        "double": lambda a: a / 65535,
    }
    alpha16 = (RGB16[::-1, :, 1] // 2 + 30000).astype(np.uint16)
    for depth, of in depths.items():
        gray, rgb, alpha = of(GRAY16), of(RGB16), of(alpha16)
        whole = 1 if gray.dtype.kind == "f" else np.iinfo(gray.dtype).max
        with_alpha = np.dstack([rgb, alpha])
        plain = over_white(rgb / whole, alpha / whole)
        multiplied = rgb * (alpha / whole)[..., None]
        multiplied = (multiplied if whole == 1 else np.rint(multiplied)).astype(rgb.dtype)
        kinds: list[tuple[str, str, Array, dict[str, Any], Array]] = [
            ("TIFF gray", "black is 0", gray, {"photometric": "minisblack"}, gray / whole),
            ("TIFF gray", "white is 0", gray, {"photometric": "miniswhite"}, 1 - gray / whole),
            ("TIFF RGB", "pixels", rgb, {"photometric": "rgb"}, rgb / whole),
            ("TIFF RGB", "planes", rgb.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"},
             rgb / whole),
            ("TIFF transparency", "alpha", with_alpha, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, plain),
            ("TIFF transparency", "gray and alpha", np.dstack([gray, alpha]),
             {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"},
             over_white(np.repeat(gray[..., None] / whole, 3, 2), alpha / whole)),
            ("TIFF transparency", "premultiplied", np.dstack([multiplied, alpha]),
             {"photometric": "rgb", "extrasamples": ["assocalpha"]}, plain),
            ("TIFF transparency", "another channel is not looked at", with_alpha,
             {"photometric": "rgb", "extrasamples": ["unspecified"]}, rgb / whole),
        ]  # fmt: skip
        for kind, name, data, options, expected in kinds:
            for layout, how in LAYOUTS.items():
                if depth in ("half", "double") and layout not in ("strips", "big-endian deflate"):
                    continue
                how = how | ({"predictor": False} if gray.dtype.kind == "f" and "predictor" in how else {})
                transparent_bytes = depth == "8 bits" and kind == "TIFF transparency"
                tolerance = 1.01 if transparent_bytes else 0.3 if depth == "half" else 0.01
                shown = eight_bits(expected) if depth == "8 bits" else expected
                yield Case(kind, f"{name}, {depth}, {layout}", tiff(data, **options, **how), shown, tolerance)


def tiff_bits() -> Iterator[Case]:
    for bits in (1, 2, 4, 12):
        white = 2**bits - 1
        data = (GRAY16 >> (16 - bits)).astype(bool if bits == 1 else np.uint8 if bits < 8 else np.uint16)
        expected = eight_bits(unit(data, white)) if bits < 8 else unit(data, white)
        for byteorder in "<>" if bits < 12 else "<":  # tifffile writes zeros for big-endian 12 bits
            for photometric in ("minisblack", "miniswhite"):
                shown = expected if photometric == "minisblack" else (255 if bits < 8 else 1) - expected
                options: dict[str, Any] = {"photometric": photometric, "byteorder": byteorder}
                options |= {"bitspersample": bits} if bits > 1 else {}
                yield Case("TIFF of 1 to 15 bits", f"{bits} {options}", tiff(data, **options), shown, 0.01)

    def maximum(value: int, kind: str = "H") -> dict[str, Any]:
        return {"extratags": [(281, kind, 1, value, True)]}

    dim, signed = GRAY16 >> 4, (GRAY16 >> 1).astype(np.int16)
    significant = tiff(dim, ome=True, metadata={"axes": "YX", "SignificantBits": 12})
    unstated: Array | str = r"nearly black: 16 bits.* 40\d\d of 65535"
    nine_to_fifteen: list[tuple[str, Writer, Array | str]] = [
        ("MaxSampleValue", tiff(dim, **maximum(4095)), unit(dim, 4095)),
        ("int16 with it", tiff(signed, **maximum(32767)), unit(signed, 32767)),
        ("SignificantBits", significant, unit(dim, 4095)),
        ("not said", tiff(dim), unstated),
        ("RGB, not said", tiff(RGB16 >> 5, photometric="rgb"), "nearly black"),
        ("black", tiff(GRAY16 * 0), unit(GRAY16 * 0)),
    ]
    for name, write, content in nine_to_fifteen:
        yield Case("TIFF of 9 to 15 bits in 16", name, write, content, 0.01)
    integers = partial(Case, "TIFF integers of another type")
    for kind in ("int8", "int16", "int32", "uint32"):
        yield integers(kind, tiff((GRAY16 >> 9).astype(kind)), "does not say which number is white")
    stated = tiff(GRAY16.astype(np.uint32), **maximum(65535, "I"))
    yield integers("uint32 with MaxSampleValue", stated, unit(GRAY16), 0.01)
    yield integers("complex", tiff(GRAY.astype(np.complex64)), "pixels are complex64")


def tiff_colors() -> Iterator[Case]:
    options: dict[str, Any]
    for bits in (2, 4, 8):
        used = COLORS[: 2**bits]
        index = GRAY >> (8 - bits)
        colormap = used.T.astype(np.uint16) * 257
        for compression in (None, "zlib") if bits == 8 else (None,):
            tag = (320, "H", colormap.size, tuple(colormap.ravel().tolist()), True)
            options = {"extratags": [tag], "photometric": "palette", "compression": compression, "bitspersample": bits}
            yield Case("TIFF palette", f"{bits} bits {compression}", tiff(index, **options), used[index])
    old = np.minimum(COLORS.T, 255).astype(np.uint16)
    yield Case("TIFF palette", "of 8 bits", tiff(GRAY, colormap=old, photometric="palette"), COLORS[GRAY])
    cmyk = np.dstack([RGB, RGB[::-1, ..., 2] // 2])
    ink = unit(cmyk)
    shown = np.rint((1 - ink[..., :3]) * (1 - ink[..., 3:]) * 255)
    for compression in (None, "lzw"):
        options = {"photometric": "separated", "compression": compression}
        yield Case("TIFF CMYK", f"8 bits {compression}", tiff(cmyk, **options), shown.astype(np.uint8), 1)
        wide = tiff(cmyk.astype(np.uint16) * 257, **options)
        yield Case("TIFF CMYK", f"16 bits {compression}", wide, shown.astype(np.uint8), 1)
    inks = [(332, "H", 1, 2, True)]
    yield Case("TIFF CMYK", "other inks", tiff(cmyk, photometric="separated", extratags=inks), "inks other than CMYK")
    lab = cv2.cvtColor((SMOOTH / 255).astype(np.float32), cv2.COLOR_RGB2Lab)
    stored = np.dstack([np.rint(lab[..., 0] * 2.55), *(np.rint(lab[..., at]) % 256 for at in (1, 2))]).astype(np.uint8)
    for compression in (None, "zlib"):
        write = tiff(stored, photometric="cielab", compression=compression)
        yield Case("TIFF CIELab", str(compression), write, SMOOTH, 12)
    yield Case("TIFF CIELab", "16 bits", tiff(stored.astype(np.uint16) * 257, photometric="cielab"), "Lab of 16 bits")
    ycrcb = cv2.cvtColor(SMOOTH, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    for compression in (None, "zlib", "lzw"):
        options = {"photometric": "ycbcr", "compression": compression, "extratags": [(530, "H", 2, (1, 1), True)]}
        yield Case("TIFF YCbCr", str(compression), tiff(ycrcb, **options), SMOOTH, 2)

    def subsampled(path: Path) -> None:
        tiff(ycrcb, photometric="ycbcr")(path)
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags[530].overwrite((2, 2))

    yield Case("TIFF YCbCr", "subsampled", subsampled, "subsampled")
    for tile in (None, (16, 32)):
        gray = np.ascontiguousarray(SMOOTH[..., 0])
        ways: dict[str, tuple[Array, dict[str, Any]]] = {
            "YCbCr": (SMOOTH, {"photometric": "rgb", "subsampling": (1, 1)}),
            "RGB": (SMOOTH, {"photometric": "rgb", "compressionargs": {"level": 98, "outcolorspace": "RGB"}}),
            "gray": (gray, {"photometric": "minisblack"}),
        }
        if tile is None:
            ways["YCbCr 4:2:0"] = (SMOOTH, {"photometric": "rgb", "subsampling": (2, 2)})
        for name, (data, options) in ways.items():
            write = tiff(data, **{"compression": "jpeg", "compressionargs": {"level": 98}, "tile": tile, **options})
            yield Case("TIFF of JPEG", f"{name} {tile}", write, data, 9 if "4:2:0" in name else 6)
    codecs: dict[str, dict[str, Any]] = {
        "jpeg2000": {"reversible": True, "level": 0}, "zstd": {}, "packbits": {}, "webp": {"lossless": True},
        "lzma": {}, "jpegxl": {"lossless": True},
    }  # fmt: skip
    for codec, options in codecs.items():
        write = tiff(RGB, photometric="rgb", compression=codec, compressionargs=options)
        yield Case("TIFF of other codecs", codec, write, RGB)
    bilevel = Image.fromarray(GRAY > 99)
    for name in ("group3", "group4", "tiff_ccitt", "packbits"):
        yield Case("TIFF of other codecs", name, pillow(bilevel, compression=name), (GRAY > 99) * np.uint8(255))


def tiff_orientations() -> Iterator[Case]:
    for orientation in range(1, 9):
        tag = [(274, "H", 1, orientation, True)]
        for name, data, shown, options in (
            ("8 bits", RGB, RGB, {"photometric": "rgb"}),
            ("8 bits tiled", RGB, RGB, {"photometric": "rgb", "tile": (16, 16)}),
            ("16 bits deflate", RGB16, unit(RGB16), {"photometric": "rgb", "compression": "zlib"}),
            ("gray 16 bits", GRAY16, unit(GRAY16), {}),
            ("JPEG", SMOOTH, SMOOTH, {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 99}}),
        ):
            write, tolerance = tiff(data, extratags=tag, **options), 8 if name == "JPEG" else 0.01
            yield Case("TIFF orientation", f"{orientation} {name}", write, turned(shown, orientation), tolerance)


def tiff_pages() -> Iterator[Case]:
    Page: TypeAlias = tuple[Array, dict[str, Any]]

    def pages(*images: Page, ome: bool = False) -> Writer:
        def write(path: Path) -> None:
            with tifffile.TiffWriter(path, ome=ome) as writer:
                for data, options in images:
                    writer.write(data, **{"photometric": "rgb", "metadata": None, **options})

        return write

    small, tiles, axes = RGB[::4, ::4], {"tile": (16, 16)}, {"metadata": {"axes": "YXS"}}
    full: Page = (RGB, {})
    thumbnail: Page = (small, {"subfiletype": 1})
    preview: Page = (small, {"subfiletype": 1, "subifds": 1})
    raw_tags = [(33421, "H", 2, (2, 2), True), (33422, "B", 4, (0, 1, 1, 2), True)]
    raw: Page = (GRAY16, {"photometric": "cfa", "extratags": raw_tags})
    half, quarter = ((RGB[::s, ::s], {"subfiletype": 1, **tiles}) for s in (2, 4))
    several: list[tuple[str, str, Writer, Array | str]] = [
        ("TIFF of several pages", "a marked thumbnail first", pages(thumbnail, full), RGB),
        ("TIFF of several pages", "a marked thumbnail last", pages(full, thumbnail), RGB),
        ("TIFF of several pages", "another first", pages((small, {}), full),
         "got 2 .page 0 of 14×10; page 1 of 53×37"),
        ("TIFF of several pages", "pages of one size", pages(full, full), "expected one image"),
        ("TIFF of several pages", "a preview, the picture in its subIFD", pages(preview, full), RGB),
        ("TIFF of several pages", "a preview of a raw photograph", pages(preview, raw), "colors are CFA"),
        ("TIFF pyramid", "pages", pages((RGB, tiles), half, quarter), RGB),
        ("TIFF pyramid", "subIFDs", pages((RGB, {"subifds": 1, **tiles}), half), RGB),
    ]  # fmt: skip
    for kind, name, write, content in several:
        yield Case(kind, name, write, content)

    def slides(*images: Array) -> Writer:
        return pages(*((data, axes) for data in images), ome=True)

    described = """<?xml version="1.0" encoding="UTF-8"?>
        <OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0">
        <Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="53" SizeY="37" SizeC="3" SizeZ="1" SizeT="1">
        <TiffData FirstC="0" IFD="0" PlaneCount="1"><UUID FileName="picture.tif">urn:uuid:1</UUID></TiffData>
        <TiffData FirstC="1" IFD="0" PlaneCount="1"><UUID FileName="green.tif">urn:uuid:2</UUID></TiffData>
        <TiffData FirstC="2" IFD="0" PlaneCount="1"><UUID FileName="blue.tif">urn:uuid:3</UUID></TiffData>
        </Pixels></Image></OME>"""

    def ome(data: Array, axes: str, photometric: str = "minisblack") -> Writer:
        return tiff(data, ome=True, metadata={"axes": axes}, photometric=photometric)

    planes, five = RGB.transpose(2, 0, 1), np.stack([GRAY] * 5)
    cases: list[tuple[str, Writer, Array | str]] = [
        ("a label after the slide", slides(RGB, small), RGB),
        ("a label before the slide", slides(small, RGB), RGB),
        ("two slides", slides(RGB, RGB[::-1]), "expected one image, got 2"),
        ("three channels", ome(planes, "CYX"), RGB),
        ("five channels", ome(five, "CYX"), "5 channels: say with bands"),
        ("two channels", ome(planes[:2], "CYX"), "2 channels: say with bands"),
        ("samples", ome(RGB, "YXS", "rgb"), RGB),
        ("channels and samples", ome(np.stack([RGB] * 2), "CYXS", "rgb"), "6 channels: say with bands"),
        ("depth", ome(planes, "ZYX"), "expected one image, got axes 'zyx'"),
        ("16 bits", ome(GRAY16, "YX"), unit(GRAY16)),
    ]
    for name, write, content in cases:
        yield Case("OME-TIFF", name, write, content, 0.01, suffix=".ome.tif")
    write = tiff(GRAY, description=described, photometric="minisblack")
    yield Case("OME-TIFF", "planes in files that are not there", write, "planes are in other files")


# --- Profiles, zarr, and formats that Pillow reads ---


def profile(space: str) -> bytes:
    """ICC profiles by LittleCMS, through imagecodecs."""
    d65 = (0.3127, 0.3290, 1.0)
    if space == "sRGB":
        return bytes(imagecodecs.cms_profile("srgb"))
    if space == "gray":
        return bytes(imagecodecs.cms_profile("gray", whitepoint=d65, gamma=1.2))
    primaries = {
        "Display P3": (0.68, 0.32, 1, 0.265, 0.69, 1, 0.15, 0.06, 1),
        "Adobe RGB": (0.64, 0.33, 1, 0.21, 0.71, 1, 0.15, 0.06, 1),
    }
    return bytes(imagecodecs.cms_profile("rgb", whitepoint=d65, primaries=primaries[space], gamma=2.2))


def in_srgb(values: Array, space: str) -> Array:
    srgb = imagecodecs.cms_profile("srgb")
    mode = "gray" if values.ndim == 2 else "rgb"
    return imagecodecs.cms_transform(
        values, profile(space), srgb, colorspace=mode, outcolorspace="rgb", intent=1, outdtype=values.dtype
    )


def profiles() -> Iterator[Case]:
    case = partial(Case, "Color profiles")
    small = partial(case, huge=False)  # formats that are not read by windows
    image, rgba, gray_image = Image.fromarray(RGB), np.dstack([RGB, ALPHA]), Image.fromarray(GRAY)
    for space in ("Display P3", "Adobe RGB", "sRGB"):
        icc = profile(space)
        convert = (lambda values: values) if space == "sRGB" else partial(in_srgb, space=space)
        shown, tolerance = convert(RGB), 0 if space == "sRGB" else 1
        yield small(f"{space} PNG", pillow(image, icc_profile=icc), shown, tolerance, suffix=".png")
        yield small(f"{space} WebP", pillow(image, icc_profile=icc, lossless=True), shown, tolerance, suffix=".webp")
        yield small(f"{space} JPEG", pillow(Image.fromarray(SMOOTH), icc_profile=icc, quality=98, subsampling=0),
                    convert(SMOOTH), 9, suffix=".jpg")  # fmt: skip
        for compression in (None, "zlib"):
            write = tiff(RGB, photometric="rgb", iccprofile=icc, compression=compression)
            yield case(f"{space} TIFF {compression}", write, shown, tolerance)
        wide = unit(RGB16) if space == "sRGB" else convert(eight_bits(unit(RGB16)))
        write = tiff(RGB16, photometric="rgb", iccprofile=icc, compression="zlib")
        yield case(f"{space} TIFF 16 bits", write, wide, 1)
        blended = eight_bits(over_white(unit(shown), unit(ALPHA)))
        yield small(f"{space} RGBA", pillow(Image.fromarray(rgba), icc_profile=icc), blended, 1.01, suffix=".png")
        write = tiff(rgba, photometric="rgb", extrasamples=["unassalpha"], iccprofile=icc)
        yield case(f"{space} TIFF alpha", write, blended, 1.01)
        gray = GRAY if space == "sRGB" else convert(np.dstack([GRAY] * 3))
        yield small(f"{space} of gray", pillow(gray_image, icc_profile=icc), gray, 1, suffix=".png")
        yield case(f"{space} of gray TIFF", tiff(GRAY, iccprofile=icc), gray, 1)
    icc, shown = profile("gray"), in_srgb(GRAY, "gray")
    yield small("gray", pillow(gray_image, icc_profile=icc), shown, 1, suffix=".png")
    yield case("gray TIFF", tiff(GRAY, iccprofile=icc), shown, 1)
    yield case("gray TIFF 16 bits", tiff(GRAY16, iccprofile=icc), in_srgb(eight_bits(unit(GRAY16)), "gray"), 1)


def zarrs() -> Iterator[Case]:
    def array(data: Array, **options: Any) -> Writer:
        return lambda path: zarr.create_array(path, data=data, chunks=(16,) * data.ndim, **options)

    def ome_zarr(path: Path) -> None:
        multiscales = [{"axes": [{"name": name} for name in "tczyx"], "datasets": [{"path": "0"}]}]
        group = zarr.open_group(path, mode="w", attributes={"ome": {"multiscales": multiscales}})
        group.create_array("0", data=RGB.transpose(2, 0, 1)[None, :, None], chunks=(1, 1, 1, 16, 16))

    many = np.concatenate([RGB, RGB, RGB[..., :2]], axis=2)
    floats = unit(RGB16).astype(np.float32)
    five = "channels: say with bands"
    cases: list[tuple[str, Writer, Array | str, float]] = [
        ("[H, W]", array(GRAY), GRAY, 0),
        ("[H, W] 16 bits", array(GRAY16), unit(GRAY16), 0.01),
        ("[H, W, 1]", array(GRAY[..., None]), GRAY, 0),
        ("[H, W, 3]", array(RGB), RGB, 0),
        ("[H, W, 3] floats", array(floats), floats, 0.01),
        ("[H, W, 3] version 2", array(RGB, zarr_format=2), RGB, 0),
        ("[3, H, W]", array(RGB.transpose(2, 0, 1)), RGB, 0),
        ("[H, W, 4]", array(np.dstack([RGB, ALPHA])), eight_bits(over_white(unit(RGB), unit(ALPHA))), 0),
        ("[H, W, 8]", array(many), "8 " + five, 0),
        ("[8, H, W]", array(many.transpose(2, 0, 1)), "8 " + five, 0),
        ("y, x, band", array(many, dimension_names=("y", "x", "band")), "8 " + five, 0),
        ("x, y", array(GRAY.T, dimension_names=("x", "y")), GRAY, 0),
        ("time, y, x", array(GRAY[None], dimension_names=("time", "y", "x")), GRAY, 0),
        ("band, lat, lon", array(RGB.transpose(2, 0, 1), dimension_names=("band", "lat", "lon")), RGB, 0),
        ("four bands", array(many[..., :4], dimension_names=("y", "x", "band")), "4 " + five, 0),
        ("names of xarray", array(many, zarr_format=2, attributes={"_ARRAY_DIMENSIONS": ["y", "x", "band"]}),
         "8 " + five, 0),
        ("[2, 3, H, W]", array(np.stack([RGB.transpose(2, 0, 1)] * 2)), "expected one image", 0),
        ("int16", array(GRAY.astype(np.int16)), "pixels are int16", 0),
        ("12 bits in 16", array(GRAY16 >> 4), "nearly black", 0),
        ("OME-Zarr", ome_zarr, RGB, 0),
    ]  # fmt: skip
    for name, write, expected, tolerance in cases:
        yield Case("zarr", name, write, expected, tolerance, suffix=".zarr")


def png_chunk(image: Array, kind: bytes, data: bytes) -> Writer:
    """A PNG by OpenCV, with one more chunk after its header."""
    encoded = cv2.imencode(".png", image if image.ndim == 2 else image[..., ::-1])[1].tobytes()
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return lambda path: path.write_bytes(encoded[:33] + chunk + encoded[33:])


def pillow_files() -> Iterator[Case]:
    def case(kind: str, name: str, write: Writer, expected: Array | str, tolerance: float = 0) -> Case:
        suffix = {"JPEG": ".jpg", "JPEG 2000": ".jp2"}.get(kind, f".{kind.lower()}")
        return Case(kind, name, write, expected, tolerance, huge=False, suffix=suffix)

    image, rgba, rgba16 = Image.fromarray(RGB), np.dstack([RGB, ALPHA]), np.dstack([RGB16, RGB16[::-1, ..., 1]])
    shown = eight_bits(over_white(unit(RGB), unit(ALPHA)))
    palette = Image.fromarray(INDEX).convert("P")
    palette.putpalette(COLORS.tobytes())
    # PNG: depths, transparency of each kind, texts
    yield case("PNG", "1 bit", pillow(Image.fromarray(GRAY > 99)), (GRAY > 99) * np.uint8(255))
    yield case("PNG", "gray", imwrite(GRAY), GRAY)
    yield case("PNG", "RGB", imwrite(RGB), RGB)
    yield case("PNG", "RGBA", imwrite(rgba), shown)
    yield case("PNG", "gray and alpha", pillow(Image.fromarray(np.dstack([GRAY, ALPHA]), "LA")),
               eight_bits(over_white(unit(np.dstack([GRAY] * 3)), unit(ALPHA))))  # fmt: skip
    yield case("PNG", "palette", pillow(palette), COLORS[INDEX])
    half = over_white(unit(COLORS[INDEX]), np.array([1, 0.2, 0, 0.6])[INDEX])
    yield case("PNG", "palette with alphas", pillow(palette, transparency=bytes([255, 51, 0, 153])), eight_bits(half))
    yield case("PNG", "16-bit gray", imwrite(GRAY16), unit(GRAY16), 0.01)
    yield case("PNG", "16-bit RGB", imwrite(RGB16), unit(RGB16), 0.01)
    yield case("PNG", "16-bit RGBA", imwrite(rgba16), over_white(unit(RGB16), unit(rgba16[..., 3])), 0.01)
    yield case("PNG", "12 bits in 16, RGB", imwrite(RGB16 >> 4), "nearly black")
    yield case("PNG", "12 bits in 16", imwrite(GRAY16 >> 4), "nearly black")
    for data in (GRAY, GRAY16, RGB, RGB16):
        hidden = data[3, 5]  # the number, or color, that tRNS makes transparent
        is_hidden = data == hidden if data.ndim == 2 else (data == hidden).all(2, keepdims=True)
        expected = np.where(is_hidden, 1, unit(data))
        name, chunk = f"tRNS of {data.ndim - 1} {data.dtype}", np.asarray(hidden).astype(">u2").tobytes()
        expected = eight_bits(expected) if data.dtype == np.uint8 else expected
        yield case("PNG", name, png_chunk(data, b"tRNS", chunk), expected, 0.01)
    long = zlib.compress(b"a" * 2_000_000)
    yield case("PNG", "a long text", png_chunk(RGB, b"zTXt", b"Comment\0\0" + long), RGB)
    yield case("PNG", "a long international text", png_chunk(RGB, b"iTXt", b"Comment\0\1\0\0\0" + long), RGB)
    # Orientations
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        name, upright = f"orientation {orientation}", turned(RGB, orientation)
        yield case("PNG", name, pillow(image, exif=exif.tobytes()), upright)
        yield case("WebP", name, pillow(image, exif=exif.tobytes(), lossless=True), upright)
        write = pillow(Image.fromarray(SMOOTH), exif=exif.tobytes(), quality=99, subsampling=0)
        yield case("JPEG", name, write, turned(SMOOTH, orientation), 5)
    # Other formats
    yield case("JPEG", "gray", imwrite(SMOOTH[..., 0], cv2.IMWRITE_JPEG_QUALITY, 99), SMOOTH[..., 0], 4)
    cmyk = np.dstack([SMOOTH, SMOOTH[::-1, ..., 0] // 2])
    ink = unit(cmyk)
    yield case("JPEG", "CMYK", pillow(Image.frombytes("CMYK", (W, H), cmyk.tobytes()), quality=99, subsampling=0),
               eight_bits((1 - ink[..., :3]) * (1 - ink[..., 3:])), 5)  # fmt: skip
    yield case("WebP", "alpha", pillow(Image.fromarray(rgba), lossless=True, exact=True), shown)
    yield case("GIF", "palette", pillow(palette), COLORS[INDEX])
    hidden_index = np.where((INDEX == 2)[..., None], np.uint8(255), COLORS[INDEX])
    yield case("GIF", "transparency", pillow(palette, transparency=2), hidden_index)
    yield case("BMP", "RGB", pillow(image), RGB)
    yield case("BMP", "palette", pillow(palette), COLORS[INDEX])
    yield case("TGA", "alpha", pillow(Image.fromarray(rgba)), shown)
    yield case("PPM", "RGB", pillow(image), RGB)
    yield case("PGM", "16 bits", imwrite(GRAY16), unit(GRAY16), 0.01)
    yield case("PFM", "floats", imwrite(unit(GRAY16).astype(np.float32)), unit(GRAY16), 0.01)
    yield case("QOI", "RGB", lambda path: path.write_bytes(imagecodecs.qoi_encode(RGB)), RGB)
    for data in (RGB, GRAY, GRAY16):
        content = imagecodecs.jpeg2k_encode(data, level=0, reversible=True)
        expected = data if data.dtype == np.uint8 else unit(data)
        yield case("JPEG 2000", f"{data.ndim} {data.dtype}", partial(Path.write_bytes, data=content), expected, 0.01)
    if features.check("avif"):
        yield case("AVIF", "RGB", pillow(Image.fromarray(SMOOTH), quality=100, subsampling="4:4:4"), SMOOTH, 4)


CASES = [
    case
    for maker in (tiff_depths, tiff_bits, tiff_colors, tiff_orientations, tiff_pages, profiles, zarrs, pillow_files)
    for case in maker()
]
