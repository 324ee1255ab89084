"""SpatialData stores, written by the package itself."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mmap_st.data.arrays import mpp_from_pitch
from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.errors import CohortError, MissingDependencyError

sys.path.insert(0, str(Path(__file__).parents[1]))
import layouts


def test_spots_counts_and_image_of_a_store(tmp_path: Path) -> None:
    from mmap_st.extract.slides.slide import open_slide

    xy = layouts.write_spatialdata(tmp_path / "S1.zarr")
    row = open_cohort(f"spatialdata:{tmp_path / 'S1.zarr'}")["S1"]
    spots, table = read_spots(row), read_counts(row)
    ids = layouts.barcodes(len(xy))
    assert spots.ids == table.ids == tuple(ids)
    np.testing.assert_allclose(spots.xy, xy * 0.5, rtol=1e-6)  # pixels of the image
    assert mpp_from_pitch(spots).mpp == pytest.approx(1.0, rel=1e-6)
    np.testing.assert_array_equal(table.matrix.toarray(), layouts.counts(len(xy)))
    slide = open_slide(row.image)
    assert slide.size == (round((xy[:, 0].max() + 300) * 0.5), round((xy[:, 1].max() + 300) * 0.5))
    assert len(slide.levels) == 2


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write_spatialdata(tmp_path / "S1.zarr")
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    with pytest.raises(MissingDependencyError, match=r"mmap-st\[spatialdata\]"):
        open_cohort(f"spatialdata:{tmp_path / 'S1.zarr'}")


def test_a_folder_without_stores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="neither a SpatialData store"):
        open_cohort(f"spatialdata:{tmp_path}")


def test_the_image_of_a_region_is_the_one_in_colour(tmp_path: Path) -> None:
    import spatialdata as sd
    from spatialdata.models import Image2DModel

    layouts.write_spatialdata(tmp_path / "S1.zarr")
    store = sd.read_zarr(tmp_path / "S1.zarr")
    stain = np.zeros((1, 3000, 3000), np.uint8)
    store["morphology_focus"] = Image2DModel.parse(stain, dims=("c", "y", "x"))
    store.write_element("morphology_focus")
    assert open_cohort(f"spatialdata:{tmp_path / 'S1.zarr'}")["S1"].image.name == "S1_hires"
