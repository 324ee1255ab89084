import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmap_st.data.arrays import mpp_from_pitch
from mmap_st.data.readers import open_cohort, read_spots
from mmap_st.data.spots import Spots


def spots_at(xy: np.ndarray, array: np.ndarray) -> Spots:
    return Spots(tuple(map(str, range(len(xy)))), xy, array.astype(np.float64), pitch_um=200.0)


@given(
    mpp=st.floats(0.2, 3.0),
    angle=st.floats(0, 2 * np.pi),
    mirrored=st.booleans(),
    seed=st.integers(0, 100),
)
def test_a_turned_mirrored_jittered_array_with_strays_gives_its_mpp(mpp, angle, mirrored, seed) -> None:
    rng = np.random.default_rng(seed)
    array = np.stack(np.meshgrid(np.arange(12), np.arange(10)), axis=-1).reshape(-1, 2).astype(float)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    if mirrored:
        turn[0] *= -1
    pitch_px = 200.0 / mpp
    xy = array @ turn * pitch_px + 1000 + rng.normal(0, 0.05 * pitch_px, array.shape)
    xy[:4] += rng.uniform(-3, 3, (4, 2)) * pitch_px  # four misplaced spots
    estimate = mpp_from_pitch(spots_at(xy, array))
    assert estimate is not None
    assert abs(estimate.mpp / mpp - 1) < 0.02
    assert 0 < estimate.standard_error < 0.02 * mpp


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    array = np.stack(np.meshgrid(np.arange(12), np.arange(10)), axis=-1).reshape(-1, 2).astype(float)
    rng = np.random.default_rng(0)
    found = [
        mpp_from_pitch(spots_at(array * 200 + rng.normal(0, 10, array.shape), array)) for _ in range(200)
    ]
    spread = np.std([e.mpp for e in found if e])
    claimed = np.mean([e.standard_error for e in found if e])
    assert 0.6 < claimed / spread < 1.6


def test_without_a_usable_array_the_pitch_is_the_distance_between_neighbours() -> None:
    ticks = np.stack(np.meshgrid(np.arange(12.0), np.arange(10.0)), axis=-1).reshape(-1, 2)
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    wrong_array = np.random.default_rng(0).permutation(ticks)
    for array in (None, wrong_array):
        estimate = mpp_from_pitch(Spots(names(len(ticks)), ticks @ turn * 250, array, 200.0))
        assert estimate is not None
        assert abs(estimate.mpp - 0.8) < 1e-9
    line = np.stack([np.arange(10.0), np.zeros(10)], axis=1)
    assert mpp_from_pitch(spots_at(line * 250, line)).mpp == pytest.approx(0.8)


def test_spots_that_lie_anyhow_give_no_scale() -> None:
    xy = np.random.default_rng(0).uniform(0, 5000, (200, 2))
    assert mpp_from_pitch(Spots(names(200), xy, None, 200.0)) is None
    assert mpp_from_pitch(Spots(names(200), xy, np.round(xy), None)) is None


def names(n: int) -> tuple[str, ...]:
    return tuple(map(str, range(n)))


def test_too_few_spots_give_nothing() -> None:
    few = np.array([[0, 0], [1, 0], [0, 1.0]])
    assert mpp_from_pitch(spots_at(few * 200, few)) is None
    assert mpp_from_pitch(Spots(("a",), np.zeros((1, 2)))) is None


def test_the_real_sections_have_the_known_scale(shared) -> None:
    cohort = open_cohort(f"her2st:{shared / 'data' / 'her2st'}")
    for name, mpp in {"B4": 0.688, "C2": 0.688, "A2": 0.919}.items():
        estimate = mpp_from_pitch(read_spots(cohort[name]))
        assert estimate is not None
        assert abs(estimate.mpp - mpp) < 0.003
        assert estimate.standard_error < 0.001
