"""TIFFs by tifffile, libtiff and imagecodecs, and their pixels."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.io.formats import (
    COLORS,
    GRAY,
    GRAY16,
    RGB,
    RGB16,
    SMOOTH,
    Array,
    Case,
    over_white,
    pillow,
    tiff,
    turned,
    unit,
)

tifffile: Any = pytest.importorskip("tifffile")

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

    described = """<?xml version="1.0" encoding="UTF-8"?>
        <OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0">
        <Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="53" SizeY="37" SizeC="3" SizeZ="1" SizeT="1">
        <TiffData FirstC="0" IFD="0" PlaneCount="1"><UUID FileName="picture.tif">urn:uuid:1</UUID></TiffData>
        <TiffData FirstC="1" IFD="0" PlaneCount="1"><UUID FileName="green.tif">urn:uuid:2</UUID></TiffData>
        <TiffData FirstC="2" IFD="0" PlaneCount="1"><UUID FileName="blue.tif">urn:uuid:3</UUID></TiffData>
        </Pixels></Image></OME>"""
    write = tiff(GRAY, description=described, photometric="minisblack")
    yield Case("OME-TIFF", "planes in files that are not there", write, "planes are in other files")
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


def tiffs() -> Iterator[Case]:
    for maker in (tiff_depths, tiff_bits, tiff_colors, tiff_orientations, tiff_pages):
        yield from maker()
