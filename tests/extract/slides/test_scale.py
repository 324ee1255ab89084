"""The scale that an image's metadata states: in any spelling of its unit, and where it cannot be right."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from mmap_st.data.cohort import Cohort, CohortSlide, write_cohort
from mmap_st.errors import ResolutionError
from mmap_st.extract.slides.formats.units import micrometres_of
from mmap_st.extract.slides.slide import choose_mpp, known_mpps, open_slide
from mmap_st.report.cohort_check import check_slide

PIXELS = np.random.default_rng(0).integers(60, 250, (300, 320, 3), np.uint8)


def ome_tiff(folder: Path, mpp: float, unit: str = "\N{MICRO SIGN}m") -> Path:
    path = folder / "S.ome.tif"
    tifffile.imwrite(
        path, PIXELS, photometric="rgb", metadata={
            "axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeXUnit": unit, "PhysicalSizeY": mpp,
            "PhysicalSizeYUnit": unit,
        },
    )  # fmt: skip
    return path


def ome_zarr(folder: Path, mpp: float, unit: str = "micrometer") -> Path:
    path = folder / "S.ome.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", shape=(3, 300, 320), dtype="u1", chunks=(3, 128, 128))[:] = PIXELS.transpose(
        2, 0, 1
    )
    axes = [{"name": "c", "type": "channel"}] + [{"name": n, "type": "space", "unit": unit} for n in "yx"]
    scale = [{"type": "scale", "scale": [1.0, mpp, mpp]}]
    levels = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    assert json.dumps(dict(group.attrs))
    return path


def tiff(folder: Path, mpp: float) -> Path:
    path = folder / "S.tif"
    tifffile.imwrite(
        path, PIXELS, photometric="rgb", metadata=None, resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit=3
    )
    return path


SPELLINGS = (
    "um", "\N{MICRO SIGN}m", "\N{GREEK SMALL LETTER MU}m", "micron", "microns", "Micron", "micrometer", "micrometre",
    "micrometers", "MICROMETER", " um ",
)  # fmt: skip


@pytest.mark.parametrize("unit", SPELLINGS)
@pytest.mark.parametrize("write", [ome_tiff, ome_zarr])
def test_every_spelling_of_a_micrometre(write, unit: str, tmp_path: Path) -> None:
    slide = open_slide(write(tmp_path, 0.5, "um"))
    assert slide.mpp == pytest.approx(0.5)
    slide.close()
    other = tmp_path / "other"
    other.mkdir()
    path = write(other, 0.5, "um")
    if write is ome_tiff:
        text = tifffile.tiffcomment(path).replace('Unit="um"', f'Unit="{unit}"')
        tifffile.tiffcomment(path, text.encode())
    else:
        path = write(other, 0.5, unit)
    assert open_slide(path).mpp == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("unit", "micrometres"),
    [
        ("nm", 1e-3), ("nanometer", 1e-3), ("millimetre", 1e3), ("CENTIMETER", 1e4), ("m", 1e6), ("inch", 25_400),
        ("\N{ANGSTROM SIGN}", 1e-4), ("\N{LATIN CAPITAL LETTER A WITH RING ABOVE}", 1e-4), ("pixel", None),
        ("", None), (None, None), ("reference frame", None),
    ],
)  # fmt: skip
def test_units_of_length(unit: object, micrometres: float | None) -> None:
    assert micrometres_of(unit) == micrometres


IMPLAUSIBLE = (28.97, 0.025, 300.5, 0.0005)


@pytest.mark.parametrize("mpp", IMPLAUSIBLE)
@pytest.mark.parametrize("write", [ome_tiff, ome_zarr, tiff])
def test_a_scale_that_cannot_be_is_shown_and_doubted(write, mpp: float, mmap, tmp_path: Path) -> None:
    row = CohortSlide("S", image=write(tmp_path, mpp))
    found = check_slide(row)
    assert found.mpp is not None
    assert found.mpp.mpp == pytest.approx(mpp, rel=1e-3)
    assert found.mpp.source == "image metadata, implausible"
    (problem,) = (one for one in found.problems if "micrometres" in one)
    assert f"{found.mpp.mpp:.4g} (from the image's metadata), are implausible" in problem
    assert "not known" not in problem
    write_cohort(Cohort((row,), "here"), tmp_path / "c.csv")
    shown = mmap("cohort", "check", tmp_path / "c.csv", COLUMNS="400")
    assert "implausible" in shown.stdout + shown.stderr


@pytest.mark.parametrize("mpp", IMPLAUSIBLE)
def test_what_others_know_is_used_and_the_doubt_is_noted(mpp: float, tmp_path: Path) -> None:
    path = ome_tiff(tmp_path, mpp)
    found = check_slide(CohortSlide("S", image=path, mpp=0.5))
    assert found.mpp is not None
    assert (found.mpp.mpp, found.mpp.source) == (0.5, "cohort")
    assert any("are implausible" in note for note in found.notes)
    assert not any("micrometres" in problem for problem in found.problems)


def test_the_cohort_can_believe_it() -> None:
    known = known_mpps(CohortSlide("S"), 0.025, None)
    with pytest.raises(ResolutionError, match=r"are implausible.*say image in its column mpp_from"):
        choose_mpp(known)
    assert choose_mpp(known, "image").mpp == 0.025


@pytest.mark.parametrize("mpp", [0.05, 0.1, 0.25, 0.5, 0.6881, 4.6, 19.9])
def test_scales_of_slides_are_plausible(mpp: float) -> None:
    assert choose_mpp(known_mpps(CohortSlide("S"), mpp, None)).mpp == mpp


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 600])
def test_resolutions_of_printers_say_nothing(dpi: int, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "S.tif", dpi=(dpi, dpi))
    assert open_slide(tmp_path / "S.tif").mpp is None
