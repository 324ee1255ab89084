import pytest

from mmap_st.data.pitch import MppEstimate
from mmap_st.errors import ResolutionError
from mmap_st.extract.resolution import resolve_source_mpp

PITCH = MppEstimate(0.6881234567, 0.0004)


def test_the_cohort_comes_first_then_the_spots_then_the_image() -> None:
    assert resolve_source_mpp(0.69, 0.7, PITCH).source == "cohort"
    assert resolve_source_mpp(None, 0.7, PITCH).source == "spot pitch"
    assert resolve_source_mpp(None, 0.7, None).source == "image metadata"


def test_six_significant_digits_are_kept() -> None:
    assert resolve_source_mpp(None, None, PITCH).mpp == 0.688123


def test_a_disagreement_over_five_percent_shows_all_values() -> None:
    with pytest.raises(ResolutionError, match=r"0\.5 \(given in the cohort\).*0\.6881 \+- 0\.0004") as error:
        resolve_source_mpp(0.5, None, PITCH)
    assert "5%" in str(error.value)
    assert resolve_source_mpp(0.66, None, PITCH).mpp == 0.66  # 4%: the user's word counts
    with pytest.raises(ResolutionError, match="metadata"):
        resolve_source_mpp(None, 6.88, PITCH)


def test_nothing_known_says_how_to_give_it() -> None:
    with pytest.raises(ResolutionError, match="column mpp"):
        resolve_source_mpp(None, None, None)
