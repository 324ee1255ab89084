"""OME-Zarr as writers make it: versions, scales of two kinds, bioformats2raw's layout, stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from mmap_st.data.cohort import CohortSlide
from mmap_st.data.readers import open_cohort
from mmap_st.errors import CohortError, ImageError
from mmap_st.extract.slides.slide import open_slide
from mmap_st.report.cohort_check import check_slide

Pixels = NDArray[np.uint8]
XML = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" PhysicalSizeX="9" PhysicalSizeY="9"/></Image>'
    '<Image ID="Image:1"><Pixels ID="Pixels:1" PhysicalSizeX="500" PhysicalSizeXUnit="nm" PhysicalSizeY="0.5"/>'
    "</Image></OME>"
)
VERSIONS = ("0.4", "0.5")


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    rng = np.random.default_rng(0)
    small = rng.integers(90, 230, (10, 14, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((700, 500), Image.Resampling.BICUBIC))


def write_image(
    path: Path, pixels: Pixels, version: str, *, scale: float = 0.5, outer: float | None = None,
    unit: str | None = "micrometer", stack: dict[str, int] | None = None, levels: int = 2,
) -> None:  # fmt: skip
    """An image of two levels; `stack` gives the sizes of axes before the colours, its first plane the picture."""
    stack = stack or {}
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    axes: list[dict[str, Any]] = [
        {"name": name, "type": "time" if name == "t" else "space"} for name in stack
    ]
    axes.append({"name": "c", "type": "channel"})
    axes += [{"name": name, "type": "space", **({"unit": unit} if unit else {})} for name in "yx"]
    datasets = []
    for number in range(levels):
        level = np.moveaxis(pixels[:: 2**number, :: 2**number], 2, 0)
        shape = (*stack.values(), *level.shape)
        chunks = (*(1 for _ in stack), 3, 128, 128)
        array = group.create_array(str(number), shape=shape, dtype="uint8", chunks=chunks)
        array[:] = 7
        array[(0,) * len(stack)] = level
        factor = scale * 2**number
        steps: list[dict[str, Any]] = [
            {"type": "scale", "scale": [*(1.0 for _ in stack), 1.0, factor, factor]},
            {"type": "translation", "translation": [*(0.0 for _ in stack), 0.0, 3.0, 3.0]},
        ]
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    about: dict[str, Any] = {"axes": axes, "datasets": datasets}
    if outer is not None:
        scales = [*(1.0 for _ in stack), 1.0, outer, outer]
        about["coordinateTransformations"] = [{"type": "scale", "scale": scales}]
    if version == "0.5":
        group.attrs["ome"] = {"version": version, "multiscales": [about]}
    else:
        group.attrs["multiscales"] = [{**about, "version": version}]


def write_bioformats(path: Path, pixels: Pixels, version: str, *, series: bool, unit: str | None) -> None:
    """A label and the slide, as bioformats2raw writes them."""
    form = 3 if version == "0.5" else 2
    root = zarr.open_group(path, mode="w", zarr_format=form)
    layout = {"bioformats2raw.layout": 3}
    root.attrs.update({"ome": {"version": version, **layout}} if version == "0.5" else layout)
    ome = root.create_group("OME")
    if series:
        ome.attrs.update(
            {"ome": {"version": version, "series": ["0", "1"]}}
            if version == "0.5"
            else {"series": ["0", "1"]}
        )
    (path / "OME" / "METADATA.ome.xml").write_text(XML, "utf-8")
    write_image(path / "0", pixels[:90, :70], version, scale=9.0, unit=unit, levels=1)
    write_image(path / "1", pixels, version, unit=unit)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("outer", "unit", "mpp"), [
    (None, "micrometer", 0.5), (2.0, "micrometer", 1.0), (0.5, "micrometer", 0.25), (2.0, "nanometer", 0.001),
    (1000.0, "nanometer", 0.5), (0.001, "millimeter", 0.5), (2.0, None, None),
])  # fmt: skip
def test_what_applies_to_all_levels_comes_on_top(
    version: str, outer: float | None, unit: str | None, mpp: float | None, pixels: Pixels, tmp_path: Path
) -> None:
    write_image(tmp_path / "a.zarr", pixels, version, outer=outer, unit=unit)
    slide = open_slide(tmp_path / "a.zarr")
    assert slide.mpp == (None if mpp is None else pytest.approx(mpp))
    assert [level.size for level in slide.levels] == [(700, 500), (350, 250)]
    np.testing.assert_array_equal(np.asarray(slide.read((0, 0, 700, 500))), pixels)


@pytest.mark.parametrize("series", [True, False])
@pytest.mark.parametrize("unit", ["micrometer", None])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_layout_of_bioformats2raw_is_read(
    version: str, series: bool, unit: str | None, pixels: Pixels, tmp_path: Path
) -> None:
    write_bioformats(tmp_path / "a.zarr", pixels, version, series=series, unit=unit)
    slide = open_slide(tmp_path / "a.zarr")
    assert slide.size == (700, 500)
    assert slide.mpp == pytest.approx(0.5)  # without units by the OME-XML beside
    np.testing.assert_array_equal(np.asarray(slide.read((3, 5, 300, 400))), pixels[5:400, 3:300])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["S1.ome.zarr", "S1.zarr", "S1"])
@pytest.mark.parametrize("layout", [False, True])
def test_it_is_found_whatever_its_folder_is_called(
    version: str, name: str, layout: bool, pixels: Pixels, tmp_path: Path
) -> None:
    if layout:
        write_bioformats(tmp_path / name, pixels, version, series=True, unit="micrometer")
    else:
        write_image(tmp_path / name, pixels, version)
    zarr.open_group(tmp_path / "other.zarr", mode="w").attrs["format"] = "something else"
    for source in (tmp_path, tmp_path / name):
        (row,) = open_cohort(f"images:{source}").slides
        assert (row.slide, row.image) == ("S1", tmp_path / name)
        assert check_slide(row).size_px == (700, 500)


@pytest.mark.parametrize("attributes", [{}, {"plate": {"columns": []}}, {"bioformats2raw.layout": 3}])
def test_a_zarr_group_without_an_image_is_refused_in_a_sentence(
    attributes: dict[str, Any], tmp_path: Path
) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2).attrs.update(attributes)
    with pytest.raises(
        ImageError, match=r"a\.zarr (is a Zarr group without an image|holds a plate)"
    ) as error:
        open_slide(tmp_path / "a.zarr")
    assert "\n" not in str(error.value)
    with pytest.raises(CohortError):
        open_cohort(f"images:{tmp_path / 'nothing'}")


STACKS = {"z": {"z": 4}, "t": {"t": 3}, "both": {"t": 2, "z": 4}}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("kind", [*VERSIONS, "ome-tiff"])
def test_stacks_are_said_with_the_plane_that_is_read(
    stack: str, kind: str, pixels: Pixels, tmp_path: Path
) -> None:
    sizes = STACKS[stack]
    path = tmp_path / ("a.ome.tif" if kind == "ome-tiff" else "a.zarr")
    if kind == "ome-tiff":
        whole = np.full((*sizes.values(), *pixels.shape), 7, np.uint8)
        whole[(0,) * len(sizes)] = pixels
        axes = "".join(sizes).upper() + "YXS"
        tifffile.imwrite(path, whole, tile=(128, 128), photometric="rgb", ome=True, metadata={"axes": axes})
    else:
        write_image(path, pixels, kind, stack=sizes)
    slide = open_slide(path)
    np.testing.assert_array_equal(np.asarray(slide.read((0, 0, 700, 500))), pixels)
    (note,) = slide.notes
    for axis, words in (("z", "4 focal planes"), ("t", f"{sizes.get('t')} time points")):
        assert (words in note) == (axis in sizes)
    assert "the first" in note
    assert note in check_slide(CohortSlide("S", image=path, mpp=1.0)).notes


@pytest.mark.parametrize("how", [{"rowsperstrip": 50}, {"tile": (128, 128)}])
def test_pages_of_one_size_are_said(how: dict[str, Any], pixels: Pixels, tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for _ in range(3):
            file.write(pixels, photometric="rgb", metadata=None, **how)
    (note,) = open_slide(tmp_path / "a.tif").notes
    assert note == "it has 3 pages; the first is read"


def test_a_stack_of_one_plane_is_no_stack(pixels: Pixels, tmp_path: Path) -> None:
    write_image(tmp_path / "a.zarr", pixels, "0.5", stack={"t": 1, "z": 1})
    assert open_slide(tmp_path / "a.zarr").notes == ()
