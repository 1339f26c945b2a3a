"""One table of picture formats: files that other libraries write, and the pixels that a viewer shows of them."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
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
    """A file, and what is read of it.

    Attributes:
        kind: a row of docs/formats.md.
        name: of the case.
        write: makes the file.
        expected: ``[H, W]`` or ``[H, W, 3]``, uint8 or floats in [0, 1]; or the message of the error.
        tolerance: of 255.
        huge: whether `open_huge` opens it too.
        suffix: of the file.
    """

    kind: str
    name: str
    write: Callable[[Path], Any]
    expected: Array | str
    tolerance: float = 0
    huge: bool = True
    suffix: str = ".tif"

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def over_white(color: Array, alpha: Array) -> Array:
    """Both in [0, 1], in float64, by the definition."""
    return color * alpha[..., None] + 1 - alpha[..., None]


def unit(values: Array, white: float | None = None) -> Array:
    """[0, 1], in float64."""
    return values / (white or np.iinfo(values.dtype).max)


def turned(values: Array, orientation: int) -> Array:
    """As EXIF defines it: where the stored first row and column belong."""
    turns: dict[int, Callable[[Array], Array]] = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2), 8: lambda a: np.rot90(a),
    }  # fmt: skip
    return turns[orientation](values)


def tiff(data: Array, **options: Any) -> Callable[[Path], Any]:
    return lambda path: tifffile.imwrite(path, data, **{"metadata": None, **options})


def pillow(image: Image.Image, **options: Any) -> Callable[[Path], Any]:
    return lambda path: image.save(path, **options)


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
                tolerance = (
                    1.01 if depth == "8 bits" and kind == "TIFF transparency" else 0.3 if depth == "half" else 0.01
                )
                shown = np.rint(expected * 255).astype(np.uint8) if depth == "8 bits" else expected
                yield Case(kind, f"{name}, {depth}, {layout}", tiff(data, **options, **how), shown, tolerance)


def tiff_bits() -> Iterator[Case]:
    for bits in (1, 2, 4, 12):
        white = 2**bits - 1
        data = (GRAY16 >> (16 - bits)).astype(bool if bits == 1 else np.uint8 if bits < 8 else np.uint16)
        expected = np.rint(unit(data, white) * 255).astype(np.uint8) if bits < 8 else unit(data, white)
        for byteorder in "<>" if bits < 12 else "<":  # tifffile writes zeros for big-endian 12 bits
            for photometric, shown in (
                ("minisblack", expected),
                ("miniswhite", (255 if bits < 8 else 1) - expected),
            ):
                options: dict[str, Any] = {"photometric": photometric, "byteorder": byteorder}
                options |= {"bitspersample": bits} if bits > 1 else {}
                yield Case("TIFF of 1 to 15 bits", f"{bits} {options}", tiff(data, **options), shown, 0.01)
    maximum = [(281, "H", 1, 4095, True)]
    data = GRAY16 >> 4
    yield Case("TIFF of 9 to 15 bits in 16", "MaxSampleValue", tiff(data, extratags=maximum), unit(data, 4095), 0.01)
    signed = [(281, "H", 1, 32767, True)]
    data = (GRAY16 >> 1).astype(np.int16)
    yield Case("TIFF of 9 to 15 bits in 16", "int16 with it", tiff(data, extratags=signed), unit(data, 32767), 0.01)
    write = tiff(GRAY16 >> 4, ome=True, metadata={"axes": "YX", "SignificantBits": 12})
    yield Case("TIFF of 9 to 15 bits in 16", "SignificantBits", write, unit(GRAY16 >> 4, 4095), 0.01)
    yield Case("TIFF of 9 to 15 bits in 16", "not said", tiff(GRAY16 >> 4), r"nearly black: 16 bits.* 40\d\d of 65535")
    yield Case("TIFF of 9 to 15 bits in 16", "RGB, not said", tiff(RGB16 >> 5, photometric="rgb"), "nearly black")
    yield Case("TIFF of 9 to 15 bits in 16", "black", tiff(GRAY16 * 0), unit(GRAY16 * 0))
    for kind in (np.int8, np.int16, np.int32, np.uint32):
        data = (GRAY16 >> 9).astype(kind)
        yield Case(
            "TIFF integers of another type", str(np.dtype(kind)), tiff(data), "does not say which number is white"
        )
    yield Case("TIFF integers of another type", "uint32 with MaxSampleValue",
               tiff(GRAY16.astype(np.uint32), extratags=[(281, "I", 1, 65535, True)]), unit(GRAY16), 0.01)  # fmt: skip
    yield Case("TIFF integers of another type", "complex", tiff(GRAY.astype(np.complex64)), "pixels are complex64")


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
    yield Case("TIFF CMYK", "other inks", tiff(cmyk, photometric="separated", extratags=[(332, "H", 1, 2, True)]),
               "inks other than CMYK")  # fmt: skip
    lab = cv2.cvtColor((SMOOTH / 255).astype(np.float32), cv2.COLOR_RGB2Lab)
    stored = np.dstack([np.rint(lab[..., 0] * 2.55), *(np.rint(lab[..., at]) % 256 for at in (1, 2))]).astype(np.uint8)
    for compression in (None, "zlib"):
        yield Case(
            "TIFF CIELab", str(compression), tiff(stored, photometric="cielab", compression=compression), SMOOTH, 12
        )
    yield Case("TIFF CIELab", "16 bits", tiff(stored.astype(np.uint16) * 257, photometric="cielab"), "Lab of 16 bits")
    ycrcb = cv2.cvtColor(SMOOTH, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    for compression in (None, "zlib", "lzw"):
        options = {"photometric": "ycbcr", "compression": compression, "extratags": [(530, "H", 2, (1, 1), True)]}
        yield Case("TIFF YCbCr", str(compression), tiff(ycrcb, **options), SMOOTH, 2)

    def subsampled(path: Path) -> None:
        tiff(ycrcb, photometric="ycbcr")(path)
        with tifffile.TiffFile(path, mode="r+") as file:
            page: Any = file.pages[0]
            page.tags[530].overwrite((2, 2))

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
            write = tiff(data, extratags=tag, **options)
            yield Case("TIFF orientation", f"{orientation} {name}", write, turned(shown, orientation),
                       8 if name == "JPEG" else 0.01)  # fmt: skip


def tiff_pages() -> Iterator[Case]:
    def pages(*images: tuple[Array, dict[str, Any]]) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            with tifffile.TiffWriter(path) as writer:
                for data, options in images:
                    writer.write(data, **{"photometric": "rgb", "metadata": None, **options})

        return write

    small = RGB[::4, ::4]
    full: tuple[Array, dict[str, Any]] = (RGB, {})
    thumbnail: tuple[Array, dict[str, Any]] = (small, {"subfiletype": 1})
    yield Case("TIFF of several pages", "a marked thumbnail first", pages(thumbnail, full), RGB)
    yield Case("TIFF of several pages", "a marked thumbnail last", pages(full, thumbnail), RGB)
    yield Case(
        "TIFF of several pages", "another first", pages((small, {}), full), "got 2 .page 0 of 14×10; page 1 of 53×37"
    )
    yield Case("TIFF of several pages", "pages of one size", pages(full, full), "expected one image")
    half, quarter = ((RGB[::s, ::s], {"tile": (16, 16), "subfiletype": 1}) for s in (2, 4))
    yield Case("TIFF pyramid", "pages", pages((RGB, {"tile": (16, 16)}), half, quarter), RGB)
    yield Case("TIFF pyramid", "subIFDs", pages((RGB, {"subifds": 1, "tile": (16, 16)}), half), RGB)

    raw = (
        GRAY16,
        {"photometric": "cfa", "extratags": [(33421, "H", 2, (2, 2), True), (33422, "B", 4, (0, 1, 1, 2), True)]},
    )
    preview = (small, {"subfiletype": 1, "subifds": 1})
    yield Case("TIFF of several pages", "a preview, the picture in its subIFD", pages(preview, full), RGB)
    yield Case("TIFF of several pages", "a preview of a raw photograph", pages(preview, raw), "colors are CFA")

    def two(*images: Array) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            with tifffile.TiffWriter(path, ome=True) as writer:
                for data in images:
                    writer.write(data, photometric="rgb", metadata={"axes": "YXS"})

        return write

    yield Case("OME-TIFF", "a label after the slide", two(RGB, small), RGB, suffix=".ome.tif")
    yield Case("OME-TIFF", "a label before the slide", two(small, RGB), RGB, suffix=".ome.tif")
    yield Case("OME-TIFF", "two slides", two(RGB, RGB[::-1]), "expected one image, got 2", suffix=".ome.tif")

    def ome(data: Array, axes: str, **options: Any) -> Callable[[Path], Any]:
        metadata = {"axes": axes, **options.pop("metadata", {})}
        return lambda path: tifffile.imwrite(path, data, ome=True, metadata=metadata, **options)

    planes = RGB.transpose(2, 0, 1)
    cases: list[tuple[str, Callable[[Path], Any], Array | str]] = [
        ("three channels", ome(planes, "CYX", photometric="minisblack"), RGB),
        ("five channels", ome(np.stack([GRAY] * 5), "CYX", photometric="minisblack"), "5 channels: say with bands"),
        ("two channels", ome(planes[:2], "CYX", photometric="minisblack"), "2 channels: say with bands"),
        ("samples", ome(RGB, "YXS", photometric="rgb"), RGB),
        ("channels and samples", ome(np.stack([RGB] * 2), "CYXS", photometric="rgb"), "6 channels: say with bands"),
        ("depth", ome(planes, "ZYX", photometric="minisblack"), "expected one image, got axes 'zyx'"),
        ("16 bits", ome(GRAY16, "YX", photometric="minisblack"), unit(GRAY16)),
    ]
    for name, write, expected in cases:
        yield Case("OME-TIFF", name, write, expected, 0.01, suffix=".ome.tif")


def profile(space: str) -> bytes:
    """ICC profiles by LittleCMS, through imagecodecs."""
    d65 = (0.3127, 0.3290, 1.0)
    match space:
        case "Display P3":
            primaries = (0.68, 0.32, 1, 0.265, 0.69, 1, 0.15, 0.06, 1)
        case "Adobe RGB":
            primaries = (0.64, 0.33, 1, 0.21, 0.71, 1, 0.15, 0.06, 1)
        case "sRGB":
            return bytes(imagecodecs.cms_profile("srgb"))
        case "gray":
            return bytes(imagecodecs.cms_profile("gray", whitepoint=d65, gamma=1.2))
    return bytes(imagecodecs.cms_profile("rgb", whitepoint=d65, primaries=primaries, gamma=2.2))


def in_srgb(values: Array, space: str) -> Array:
    srgb = imagecodecs.cms_profile("srgb")
    mode = "gray" if values.ndim == 2 else "rgb"
    return imagecodecs.cms_transform(
        values, profile(space), srgb, colorspace=mode, outcolorspace="rgb", intent=1, outdtype=values.dtype
    )


def profiles() -> Iterator[Case]:
    for space in ("Display P3", "Adobe RGB", "sRGB"):
        icc = profile(space)
        shown, tolerance = (RGB, 0) if space == "sRGB" else (in_srgb(RGB, space), 1)
        image = Image.fromarray(RGB)
        for suffix, options in ((".png", {}), (".webp", {"lossless": True}), (".jp2", {})):
            if suffix != ".jp2":  # Pillow writes none there
                yield Case("Color profiles", f"{space} {suffix}", pillow(image, icc_profile=icc, **options), shown,
                           tolerance, huge=False, suffix=suffix)  # fmt: skip
        for compression in (None, "zlib"):
            write = tiff(RGB, photometric="rgb", iccprofile=icc, compression=compression)
            yield Case("Color profiles", f"{space} TIFF {compression}", write, shown, tolerance)
        write = tiff(RGB16, photometric="rgb", iccprofile=icc, compression="zlib")
        wide = unit(RGB16) if space == "sRGB" else in_srgb(np.rint(unit(RGB16) * 255).astype(np.uint8), space)
        yield Case("Color profiles", f"{space} TIFF 16 bits", write, wide, 1)
        rgba = np.dstack([RGB, ALPHA])
        shown_over = np.rint(over_white(unit(shown), unit(ALPHA)) * 255).astype(np.uint8)
        yield Case("Color profiles", f"{space} RGBA", pillow(Image.fromarray(rgba), icc_profile=icc), shown_over, 1.01,
                   huge=False, suffix=".png")  # fmt: skip
        write = tiff(rgba, photometric="rgb", extrasamples=["unassalpha"], iccprofile=icc)
        yield Case("Color profiles", f"{space} TIFF alpha", write, shown_over, 1.01)
        gray = shown if space == "sRGB" else in_srgb(np.dstack([GRAY] * 3), space)
        gray = GRAY if space == "sRGB" else gray
        yield Case("Color profiles", f"{space} of gray", pillow(Image.fromarray(GRAY), icc_profile=icc), gray, 1,
                   huge=False, suffix=".png")  # fmt: skip
        yield Case("Color profiles", f"{space} of gray TIFF", tiff(GRAY, iccprofile=icc), gray, 1)
        image = Image.fromarray(SMOOTH)
        yield Case("Color profiles", f"{space} JPEG", pillow(image, icc_profile=icc, quality=98, subsampling=0),
                   SMOOTH if space == "sRGB" else in_srgb(SMOOTH, space), 9, huge=False, suffix=".jpg")  # fmt: skip
    icc, shown = profile("gray"), in_srgb(GRAY, "gray")
    yield Case(
        "Color profiles", "gray", pillow(Image.fromarray(GRAY), icc_profile=icc), shown, 1, huge=False, suffix=".png"
    )
    yield Case("Color profiles", "gray TIFF", tiff(GRAY, iccprofile=icc), shown, 1)
    wide16 = in_srgb(np.rint(unit(GRAY16) * 255).astype(np.uint8), "gray")
    yield Case("Color profiles", "gray TIFF 16 bits", tiff(GRAY16, iccprofile=icc), wide16, 1)


def zarrs() -> Iterator[Case]:
    def array(data: Array, **options: Any) -> Callable[[Path], Any]:
        return lambda path: zarr.create_array(path, data=data, chunks=(16,) * data.ndim, **options)

    many = np.concatenate([RGB, RGB, RGB[..., :2]], axis=2)
    floats = unit(RGB16).astype(np.float32)
    five = "channels: say with bands"
    cases: list[tuple[str, Callable[[Path], Any], Array | str, float]] = [
        ("[H, W]", array(GRAY), GRAY, 0),
        ("[H, W] 16 bits", array(GRAY16), unit(GRAY16), 0.01),
        ("[H, W, 1]", array(GRAY[..., None]), GRAY, 0),
        ("[H, W, 3]", array(RGB), RGB, 0),
        ("[H, W, 3] floats", array(floats), floats, 0.01),
        ("[H, W, 3] version 2", array(RGB, zarr_format=2), RGB, 0),
        ("[3, H, W]", array(RGB.transpose(2, 0, 1)), RGB, 0),
        ("[H, W, 4]", array(np.dstack([RGB, ALPHA])),
         np.rint(over_white(unit(RGB), unit(ALPHA)) * 255).astype(np.uint8), 0),
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
    ]  # fmt: skip
    for name, write, expected, tolerance in cases:
        yield Case("zarr", name, write, expected, tolerance, suffix=".zarr")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    import struct
    import zlib

    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(image: Array, kind: bytes, data: bytes) -> Callable[[Path], Any]:
    """A PNG by OpenCV, with one more chunk after its header."""
    encoded = cv2.imencode(".png", image if image.ndim == 2 else image[..., ::-1])[1].tobytes()
    return lambda path: path.write_bytes(encoded[:33] + png_chunk(kind, data) + encoded[33:])


def other_files() -> Iterator[Case]:
    import zlib

    def case(kind: str, name: str, write: Callable[[Path], Any], expected: Array | str, tolerance: float = 0) -> Case:
        suffix = "." + kind.split()[0].lower().replace("2000", "")
        return Case(kind, name, write, expected, tolerance, huge=False, suffix={".jpeg": ".jpg"}.get(suffix, suffix))

    rgba = np.dstack([RGB, ALPHA])
    shown = np.rint(over_white(unit(RGB), unit(ALPHA)) * 255).astype(np.uint8)
    image = Image.fromarray(RGB)
    palette = Image.fromarray(INDEX).convert("P")
    palette.putpalette(COLORS.tobytes())
    yield case("PNG", "1 bit", pillow(Image.fromarray(GRAY > 99)), (GRAY > 99) * np.uint8(255))
    yield case("PNG", "gray", lambda path: cv2.imwrite(str(path), GRAY), GRAY)
    yield case("PNG", "RGB", lambda path: cv2.imwrite(str(path), RGB[..., ::-1]), RGB)
    yield case("PNG", "RGBA", lambda path: cv2.imwrite(str(path), rgba[..., [2, 1, 0, 3]]), shown)
    yield case("PNG", "gray and alpha", pillow(Image.fromarray(np.dstack([GRAY, ALPHA]), "LA")),
               np.rint(over_white(unit(np.dstack([GRAY] * 3)), unit(ALPHA)) * 255).astype(np.uint8))  # fmt: skip
    yield case("PNG", "palette", pillow(palette), COLORS[INDEX])
    half = over_white(unit(COLORS[INDEX]), np.array([1, 0.2, 0, 0.6])[INDEX])
    yield case("PNG", "palette with alphas", pillow(palette, transparency=bytes([255, 51, 0, 153])),
               np.rint(half * 255).astype(np.uint8))  # fmt: skip
    yield case("PNG", "16-bit gray", lambda path: cv2.imwrite(str(path), GRAY16), unit(GRAY16), 0.01)
    yield case("PNG", "16-bit RGB", lambda path: cv2.imwrite(str(path), RGB16[..., ::-1]), unit(RGB16), 0.01)
    rgba16 = np.dstack([RGB16, RGB16[::-1, ..., 1]])
    yield case("PNG", "16-bit RGBA", lambda path: cv2.imwrite(str(path), rgba16[..., [2, 1, 0, 3]]),
               over_white(unit(RGB16), unit(rgba16[..., 3])), 0.01)  # fmt: skip
    yield case("PNG", "12 bits in 16, RGB", lambda path: cv2.imwrite(str(path), RGB16 >> 4), "nearly black")
    yield case("PNG", "12 bits in 16", lambda path: cv2.imwrite(str(path), GRAY16 >> 4), "nearly black")
    for name, data, hidden in (("gray", GRAY, GRAY[3, 5]), ("16-bit gray", GRAY16, GRAY16[3, 5])):
        expected = np.where(data == hidden, 1, unit(data))
        expected = np.rint(expected * 255).astype(np.uint8) if data.dtype == np.uint8 else expected
        yield case("PNG", f"tRNS of {name}", with_chunk(data, b"tRNS", int(hidden).to_bytes(2, "big")), expected, 0.01)
    hidden = RGB[3, 5]
    expected = np.where((hidden == RGB).all(2, keepdims=True), np.uint8(255), RGB)
    yield case("PNG", "tRNS of RGB", with_chunk(RGB, b"tRNS", hidden.astype(">u2").tobytes()), expected)
    hidden = RGB16[3, 5]
    expected = np.where((hidden == RGB16).all(2, keepdims=True), 1, unit(RGB16))
    yield case("PNG", "tRNS of 16-bit RGB", with_chunk(RGB16, b"tRNS", hidden.astype(">u2").tobytes()), expected, 0.01)
    text = b"Comment\0\0" + zlib.compress(b"a" * 2_000_000)
    yield case("PNG", "a long text", with_chunk(RGB, b"zTXt", text), RGB)
    international = b"Comment\0\1\0\0\0" + zlib.compress(b"a" * 2_000_000)
    yield case("PNG", "a long international text", with_chunk(RGB, b"iTXt", international), RGB)
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        for kind, options in (("PNG", {}), ("WebP", {"lossless": True})):
            yield case(kind, f"orientation {orientation}", pillow(image, exif=exif.tobytes(), **options),
                       turned(RGB, orientation))  # fmt: skip
        yield case("JPEG", f"orientation {orientation}",
                   pillow(Image.fromarray(SMOOTH), exif=exif.tobytes(), quality=99, subsampling=0),
                   turned(SMOOTH, orientation), 5)  # fmt: skip
    yield case("JPEG", "gray", lambda path: cv2.imwrite(str(path), SMOOTH[..., 0], [cv2.IMWRITE_JPEG_QUALITY, 99]),
               SMOOTH[..., 0], 4)  # fmt: skip
    cmyk = np.dstack([SMOOTH, SMOOTH[::-1, ..., 0] // 2])
    ink = unit(cmyk)
    yield case("JPEG", "CMYK", pillow(Image.frombytes("CMYK", (W, H), cmyk.tobytes()), quality=99, subsampling=0),
               np.rint((1 - ink[..., :3]) * (1 - ink[..., 3:]) * 255).astype(np.uint8), 5)  # fmt: skip
    yield case("WebP", "alpha", pillow(Image.fromarray(rgba), lossless=True, exact=True), shown)
    yield case("GIF", "palette", pillow(palette), COLORS[INDEX])
    yield case("GIF", "transparency", pillow(palette, transparency=2),
               np.where((INDEX == 2)[..., None], np.uint8(255), COLORS[INDEX]))  # fmt: skip
    yield case("BMP", "RGB", pillow(image), RGB)
    yield case("BMP", "palette", pillow(palette), COLORS[INDEX])
    yield case("TGA", "alpha", pillow(Image.fromarray(rgba)), shown)
    yield case("PPM", "RGB", pillow(image), RGB)
    yield case("PGM", "16 bits", lambda path: cv2.imwrite(str(path), GRAY16), unit(GRAY16), 0.01)
    yield case(
        "PFM", "floats", lambda path: cv2.imwrite(str(path), unit(GRAY16).astype(np.float32)), unit(GRAY16), 0.01
    )
    yield case("QOI", "RGB", lambda path: path.write_bytes(imagecodecs.qoi_encode(RGB)), RGB)
    for data in (RGB, GRAY, GRAY16):
        name = f"{data.ndim} {data.dtype}"
        write = lambda path, data=data: path.write_bytes(imagecodecs.jpeg2k_encode(data, level=0, reversible=True))  # noqa: E731
        expected = data if data.dtype == np.uint8 else unit(data)
        yield Case("JPEG 2000", name, write, expected, 0.01, huge=False, suffix=".jp2")
    yield case("AVIF", "RGB", pillow(Image.fromarray(SMOOTH), quality=100, subsampling="4:4:4"), SMOOTH, 4)


def cases() -> list[Case]:
    makers = (tiff_depths, tiff_bits, tiff_colors, tiff_orientations, tiff_pages, profiles, zarrs, other_files)
    return [case for maker in makers for case in maker()]


_ = io
