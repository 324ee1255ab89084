"""Every way to the same pixels gives the same pixels: `read_tile`, `read`, and the picture that was written."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from mmap_st.errors import UnsuitableImageError
from mmap_st.extract.slides.formats.pixels import tile_box
from mmap_st.extract.slides.slide import open_slide

Picture = NDArray[np.uint8]
_XML = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="{kind}" SizeX="{width}"'
    ' SizeY="{height}" SizeC="{channels}" SizeZ="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5"'
    ' PhysicalSizeXUnit="µm" PhysicalSizeYUnit="µm">{parts}</Pixels></Image></OME>'
)


@pytest.fixture(scope="module")
def picture() -> Picture:
    """700 x 520 px of made tissue, smooth enough that JPEG keeps it."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (14, 19, 3), np.uint8)
    small[:, :, 1] //= 2
    return np.asarray(Image.fromarray(small).resize((700, 520), Image.Resampling.BICUBIC))


def ome(picture: Picture, kind: str = "uint8") -> bytes:
    height, width, _ = picture.shape
    parts = '<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/>'
    return _XML.format(kind=kind, width=width, height=height, channels=3, parts=parts).encode()


def jpegs(picture: Picture, tile: int, **how: Any) -> Iterator[bytes]:
    """Tiles as JFIF, which is YCbCr, as Bio-Formats and QuPath write them whatever the tag says."""
    for y in range(0, picture.shape[0], tile):
        for x in range(0, picture.shape[1], tile):
            part = np.full((tile, tile, 3), 255, np.uint8)
            own = picture[y : y + tile, x : x + tile]
            part[: own.shape[0], : own.shape[1]] = own
            out = io.BytesIO()
            Image.fromarray(part).save(out, "JPEG", quality=95, **how)
            yield out.getvalue()


def half(picture: Picture) -> Picture:
    size = (picture.shape[1] // 2, picture.shape[0] // 2)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def write_tiff(path: Path, picture: Picture, *, levels: int, with_ome: bool, jfif: bool, **how: Any) -> None:
    """A TIFF with its lower levels as sub-resolutions (OME) or as further pages."""
    pages = [picture]
    while len(pages) < levels:
        pages.append(half(pages[-1]))
    description = ome(picture) if with_ome else None
    below = {"subifds": levels - 1} if with_ome and levels > 1 else {}
    with tifffile.TiffWriter(path) as file:
        for number, page in enumerate(pages):
            more: dict[str, Any] = {"metadata": None, "photometric": "rgb", **how}
            more |= {"description": description, **below} if number == 0 else {"subfiletype": 1}
            data: Any = page
            if jfif:
                tile = how["tile"][0]
                chroma = {} if how.get("subsampling") is None else {"subsampling": "4:2:0"}
                more.pop("subsampling", None)
                more |= {"shape": page.shape, "dtype": "uint8", "compressionargs": {"outcolorspace": "rgb"}}
                data = jpegs(page, tile, **chroma)
            file.write(data, **more)


#: How a TIFF is written: by name, with how far a value may be off, since JPEG loses some.
TIFFS: dict[str, tuple[dict[str, Any], float]] = {
    "plain": ({}, 0.0),
    "deflate": ({"compression": "zlib"}, 0.0),
    "lzw": ({"compression": "lzw"}, 0.0),
    "jpeg ycbcr": ({"compression": "jpeg"}, 4.0),
    "jpeg ycbcr 4:2:0": ({"compression": "jpeg", "subsampling": (2, 2)}, 6.0),
    "jpeg rgb": ({"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}}, 4.0),
    "jpeg jfif under rgb": ({"compression": "jpeg", "jfif": True}, 4.0),
    "jpeg jfif under rgb 4:2:0": ({"compression": "jpeg", "jfif": True, "subsampling": (2, 2)}, 6.0),
}
SHAPES: dict[str, dict[str, Any]] = {
    "tiles of 128": {"tile": (128, 128)},
    "tiles of 256": {"tile": (256, 256)},
    "strips": {"rowsperstrip": 64},
}
CASES = [
    (name, shape, with_ome, levels)
    for name, (how, _) in TIFFS.items()
    for shape in SHAPES
    for with_ome in (True, False)
    for levels in (1, 3)
    if not (how.get("jfif") and shape == "strips")
]


def assert_read_alike(path: Path, picture: Picture, off: float) -> None:
    slide = open_slide(path)
    try:
        expected = picture
        for level, about in enumerate(slide.levels):
            across, down = (-(-size // tile) for size, tile in zip(about.size, about.tile, strict=True))
            for row in range(down):
                for column in range(across):
                    box = tile_box(about, column, row)
                    tile = slide.read_tile(level, column, row)
                    np.testing.assert_array_equal(tile, np.asarray(slide.read(box, level)), str(box))
            whole = np.asarray(slide.read((0, 0, *about.size), level)).astype(float)
            if level:
                expected = half(expected)
            assert whole.shape == expected.shape
            assert np.abs(whole - expected).mean() <= off, (level, np.abs(whole - expected).mean())
    finally:
        slide.close()


@pytest.mark.parametrize(("name", "shape", "with_ome", "levels"), CASES)
def test_tiffs(name: str, shape: str, with_ome: bool, levels: int, picture: Picture, tmp_path: Path) -> None:
    how, off = TIFFS[name]
    path = tmp_path / ("slide.ome.tif" if with_ome else "slide.tif")
    write_tiff(path, picture, levels=levels, with_ome=with_ome, **{"jfif": False, **how, **SHAPES[shape]})
    assert_read_alike(path, picture, off)


def marked(jpeg: bytes, transform: int | None) -> bytes:
    """A JPEG of Pillow with Adobe's marker in the place of JFIF's or its own; with none where that is None."""
    assert jpeg[2:4] in (b"\xff\xe0", b"\xff\xee")
    rest = jpeg[4 + int.from_bytes(jpeg[4:6], "big") :]
    adobe = b"" if transform is None else b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(4) + bytes([transform])
    return jpeg[:2] + adobe + rest


@pytest.mark.parametrize("with_ome", [True, False])
@pytest.mark.parametrize("tag", ["rgb", "ycbcr"])
@pytest.mark.parametrize("marker", ["adobe", "none"])
@pytest.mark.parametrize("stored", ["rgb", "ycbcr"])
def test_jpegs_whose_markers_contradict_the_tag_are_read_one_way(
    stored: str, marker: str, tag: str, with_ome: bool, picture: Picture, tmp_path: Path
) -> None:
    transform = {"adobe": {"rgb": 0, "ycbcr": 1}[stored], "none": None}[marker]
    tiles = (marked(tile, transform) for tile in jpegs(picture, 128, keep_rgb=stored == "rgb"))
    path = tmp_path / ("slide.ome.tif" if with_ome else "slide.tif")
    tifffile.imwrite(
        path,
        tiles,
        shape=picture.shape,
        dtype="uint8",
        tile=(128, 128),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"outcolorspace": tag},
        metadata=None,
        description=ome(picture) if with_ome else None,
    )
    assert_read_alike(path, picture, 4.0 if stored == tag else 255.0)


@pytest.mark.parametrize("with_ome", [True, False])
@pytest.mark.parametrize("how", [{"tile": (128, 128)}, {"rowsperstrip": 64}])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_a_fourth_sample_is_alpha_where_its_tag_says_so(
    kind: str, how: dict[str, Any], with_ome: bool, picture: Picture, tmp_path: Path
) -> None:
    alpha = np.full(picture.shape[:2], 255, np.uint8)
    alpha[:, :200], alpha[200:, 300:] = 0, 128
    share = alpha[:, :, None] / 255
    expected, stored = picture * share + 255 * (1 - share), picture
    if kind == "unspecified":
        expected = picture.astype(float)
    if kind == "assocalpha":
        stored = (picture * share).round().astype(np.uint8)
    path = tmp_path / ("slide.ome.tif" if with_ome else "slide.tif")
    tifffile.imwrite(
        path, np.dstack([stored, alpha]), photometric="rgb", extrasamples=[kind], compression="zlib",
        metadata={"axes": "YXS"} if with_ome else None, ome=with_ome, **how,
    )  # fmt: skip
    assert_read_alike(path, expected.round().astype(np.uint8), 1.0)


@pytest.mark.parametrize("how", [{"tile": (128, 128)}, {"rowsperstrip": 64}])
@pytest.mark.parametrize("compression", ["webp", "zstd", "lzma", "jpeg2000", "jpegxl", "packbits"])
def test_compressions_that_not_every_reader_knows(
    compression: str, how: dict[str, Any], picture: Picture, tmp_path: Path
) -> None:
    lossless = {"compressionargs": {"lossless": True}} if compression == "webp" else {}
    path = tmp_path / "slide.tif"
    tifffile.imwrite(
        path, picture, photometric="rgb", metadata=None, compression=compression, **lossless, **how
    )
    assert_read_alike(path, picture, 0.0)


@pytest.mark.parametrize("how", [{"tile": (128, 128)}, {"rowsperstrip": 64}])
@pytest.mark.parametrize("kind", ["float32", "uint16", "uint32", "int16"])
def test_pixels_of_other_types_are_unsuitable_and_not_damaged(
    kind: str, how: dict[str, Any], picture: Picture, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture.astype(kind), photometric="rgb", metadata=None, **how)
    with pytest.raises(UnsuitableImageError, match="convert it to 8-bit RGB"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_pictures_of_pillow(suffix: str, picture: Picture, tmp_path: Path) -> None:
    path = tmp_path / f"slide{suffix}"
    Image.fromarray(picture).save(path, **({"quality": 95} if suffix == ".jpg" else {}))
    assert_read_alike(path, picture, 4.0 if suffix == ".jpg" else 0.0)


def write_planes(path: Path, planes: NDArray[Any], names: tuple[str, ...]) -> None:
    kind = planes.dtype.name
    parts = "".join(
        f'<Channel ID="Channel:0:{i}" SamplesPerPixel="1"' + (f' Name="{name}"/>' if name else "/>")
        for i, name in enumerate(names)
    ) + "".join(f'<TiffData IFD="{i}" FirstC="{i}" PlaneCount="1"/>' for i in range(len(names)))
    count, height, width = planes.shape
    xml = _XML.format(kind=kind, width=width, height=height, channels=count, parts=parts).encode()
    with tifffile.TiffWriter(path) as file:
        for number, plane in enumerate(planes):
            more = {"description": xml} if number == 0 else {}
            file.write(plane, tile=(256, 256), photometric="minisblack", metadata=None, **more)


@pytest.mark.parametrize(
    "names", [("", "", ""), ("Channel:0:0", "Channel:0:1", "Channel:0:2"), ("0", "1", "2"), ("C1", "C2", "C3"),
              ("Red", "Green", "Blue")],
)  # fmt: skip
def test_planes_whose_names_say_nothing_are_colours(
    names: tuple[str, ...], picture: Picture, tmp_path: Path
) -> None:
    write_planes(tmp_path / "planes.ome.tif", picture.transpose(2, 0, 1).copy(), names)
    assert_read_alike(tmp_path / "planes.ome.tif", picture, 0.0)


def stained(planes: Picture) -> tuple[NDArray[Any], tuple[str, ...]]:
    return planes, ("DAPI", "CD3", "CD8")


def deep(planes: Picture) -> tuple[NDArray[Any], tuple[str, ...]]:
    return planes.astype(np.uint16) * 16, ("", "", "")


def five(planes: Picture) -> tuple[NDArray[Any], tuple[str, ...]]:
    return np.concatenate([planes, planes[:2]]), ("0", "1", "2", "3", "4")


@pytest.mark.parametrize("make", [stained, deep, five])
def test_what_one_reader_refuses_no_other_makes_a_grey_picture_of(
    make: Callable[[Picture], tuple[NDArray[Any], tuple[str, ...]]], picture: Picture, tmp_path: Path
) -> None:
    planes, names = make(picture.transpose(2, 0, 1).copy())
    write_planes(tmp_path / "planes.ome.tif", planes, names)
    with pytest.raises(UnsuitableImageError):
        open_slide(tmp_path / "planes.ome.tif")


@pytest.mark.parametrize(
    "how", [{"tile": (256, 256)}, {"rowsperstrip": 64}, {"tile": (256, 256), "compression": "zlib"}]
)
def test_sixteen_bits_a_channel_are_refused(how: dict[str, Any], picture: Picture, tmp_path: Path) -> None:
    """Of 12 bits in 16, the upper 8 are nearly nothing: a black picture."""
    deep_picture = picture.astype(np.uint16) * 16
    tifffile.imwrite(tmp_path / "deep.tif", deep_picture, photometric="rgb", **how)
    with pytest.raises(UnsuitableImageError, match="8-bit RGB"):
        open_slide(tmp_path / "deep.tif")


def test_a_png_of_sixteen_bits_is_refused(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(8 * 6) for _ in range(8))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    (tmp_path / "deep.png").write_bytes(png + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    with pytest.raises(UnsuitableImageError, match="16 bits a channel"):
        open_slide(tmp_path / "deep.png")
