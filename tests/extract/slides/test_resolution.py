import numpy as np
import pytest

from mmap_st.data.cohort import CohortSlide
from mmap_st.data.spots import Spots
from mmap_st.errors import ResolutionError
from mmap_st.extract.slides.slide import known_mpps, resolve_source_mpp

ROW = CohortSlide("S")


def spots(mpp: float = 0.6881234567, stated: float | None = None, pitch: float = 200.0) -> Spots:
    """A square array whose pitch gives `mpp`."""
    array = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), axis=-1).reshape(-1, 2)
    ids = tuple(f"{x:.0f}x{y:.0f}" for x, y in array)
    return Spots(ids, array * pitch / mpp, array, pitch, mpp=stated)


def test_the_cohort_comes_first_then_the_spots_then_the_image() -> None:
    assert resolve_source_mpp(CohortSlide("S", mpp=0.69), 0.7, spots()).source == "cohort"
    assert resolve_source_mpp(ROW, 0.7, spots(stated=0.69)).source == "spot pitch"
    assert resolve_source_mpp(ROW, 0.7, None).source == "image metadata"
    sources = [one.key for one in known_mpps(CohortSlide("S", mpp=0.69), 0.7, spots(stated=0.69))]
    assert sources == ["cohort", "pitch", "spots", "image"]


def test_six_significant_digits_are_kept() -> None:
    assert resolve_source_mpp(ROW, None, spots()).mpp == 0.688123


def test_a_disagreement_over_five_percent_shows_all_values() -> None:
    given = CohortSlide("S", mpp=0.5)
    with pytest.raises(ResolutionError, match=r"0\.5 \(given in the cohort\).*0\.6881 \+- ") as error:
        resolve_source_mpp(given, None, spots())
    assert "5%" in str(error.value)
    near = CohortSlide("S", mpp=0.66)
    assert resolve_source_mpp(near, None, spots()).mpp == 0.66  # 4%: the user's word counts
    with pytest.raises(ResolutionError, match=r"0\.6881.*6\.88 \(from the image's metadata\)"):
        resolve_source_mpp(ROW, 6.88, spots())
    with pytest.raises(ResolutionError, match=r"0\.6881.*0\.25 \(from the files of its spots\)"):
        resolve_source_mpp(ROW, None, spots(stated=0.25))


def test_the_cohort_can_say_which_source_to_believe() -> None:
    row = CohortSlide("S", mpp=0.69, mpp_from="pitch")
    assert resolve_source_mpp(row, 6.88, spots()).source == "spot pitch"
    with pytest.raises(ResolutionError, match="mpp_from says image, which does not know"):
        resolve_source_mpp(CohortSlide("S", mpp=0.69, mpp_from="image"), None, spots())


def test_nothing_known_says_how_to_give_it() -> None:
    with pytest.raises(ResolutionError, match="column mpp"):
        resolve_source_mpp(ROW, None, None)
