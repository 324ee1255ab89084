import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmap_st.errors import RequestError
from mmap_st.extract.windows.geometry import (
    mpp_key,
    mpp_of_magnification,
    parse_magnifications,
    share_in_bounds,
    window_boxes,
)

POSITIVE = st.floats(0.05, 5.0)
PLACE = st.floats(-5000, 20000)


@given(PLACE, PLACE, POSITIVE, POSITIVE, st.integers(1, 600))
def test_a_window_is_exact_in_micrometres_and_centred(x, y, mpp, source, input_px) -> None:
    ((x0, y0, x1, y1),) = window_boxes(np.array([[x, y]]), mpp, input_px, source)
    for side in (x1 - x0, y1 - y0):
        assert side * source == pytest.approx(input_px * mpp, rel=1e-6)
    assert (x0 + x1) / 2 == pytest.approx(x, abs=1e-6)
    assert (y0 + y1) / 2 == pytest.approx(y, abs=1e-6)


def test_an_mpp_is_never_snapped_to_a_magnification() -> None:
    sides = [np.ptp(window_boxes(np.zeros((1, 2)), 0.5, 224, s)[0, [0, 2]]) for s in (0.25, 0.265)]
    assert sides[0] / sides[1] == pytest.approx(0.265 / 0.25)


@given(st.tuples(PLACE, PLACE), st.floats(1, 3000), st.integers(1, 9000), st.integers(1, 9000))
def test_share_in_bounds_is_the_area_inside(centre, side, width, height) -> None:
    box = np.array([[centre[0] - side / 2, centre[1] - side / 2, centre[0] + side / 2, centre[1] + side / 2]])
    share = share_in_bounds(box, (width, height))[0]
    across = max(0.0, min(box[0, 2], width) - max(box[0, 0], 0.0))
    down = max(0.0, min(box[0, 3], height) - max(box[0, 1], 0.0))
    assert share == pytest.approx(across * down / side**2, abs=1e-5)
    assert 0 <= share <= 1 + 1e-6


def test_magnifications_are_aliases_of_mpp() -> None:
    assert [mpp_of_magnification(m) for m in (40, 20, 10, 5)] == [0.25, 0.5, 1.0, 2.0]
    assert parse_magnifications("5,40x, 20,20", None) == (0.25, 0.5, 2.0)
    assert parse_magnifications(None, "1,0.5") == (0.5, 1.0)
    assert parse_magnifications("0.5x", None) == (20.0,)
    assert parse_magnifications(None, None) is None
    assert mpp_key(0.5) == "0.5000"


@given(POSITIVE)
def test_a_parsed_mpp_is_what_its_key_says(mpp) -> None:
    (parsed,) = parse_magnifications(None, repr(mpp)) or ()
    assert float(mpp_key(parsed)) == parsed


@pytest.mark.parametrize(
    ("magnifications", "mpp", "said"),
    [
        ("20", "0.5", "Give --magnifications or --mpp, not both"),
        ("", None, "--magnifications '' is empty; .* such as 20,10,5"),
        (None, " ", "--mpp ' ' is empty; .* such as 0.5,1,2"),
        ("0.5", None, r"did you mean --mpp 0.5\? .* written 0.5x"),
        ("20,10,.25", None, r"did you mean --mpp .25\?"),
        ("20,,10", None, "--magnifications '20,,10' has nothing between two commas"),
        (None, "1,", "--mpp '1,' has nothing between two commas, or at an end"),
        ("fine", None, "--magnifications: 'fine' is not a number; .* such as 20,10,5"),
        (None, "fine", "--mpp: 'fine' is not a number; .* such as 0.5,1,2"),
        (None, "nan", "--mpp: 'nan' is not a number"),
        ("20;10", None, "--magnifications: '20;10' is not a number"),
        ("0", None, "--magnifications 0: a magnification lies between 0.1 and 1000"),
        ("-20", None, "--magnifications -20: a magnification lies between"),
        ("inf", None, "--magnifications inf: a magnification lies between"),
        ("2000x", None, "--magnifications 2000x: a magnification lies between"),
        (None, "-1", "--mpp -1: micrometres per pixel lie between 0.01 and 100"),
        (None, "500", "--mpp 500: micrometres per pixel lie between"),
        (None, "20x", "--mpp 20x: it is a magnification; give --magnifications 20"),
    ],
)
def test_magnifications_that_cannot_be_used_are_refused_by_their_own_option(
    magnifications, mpp, said
) -> None:
    with pytest.raises(RequestError, match=said):
        parse_magnifications(magnifications, mpp)


def test_the_limits_of_both_options_are_one() -> None:
    assert parse_magnifications("0.1x,1000", None) == parse_magnifications(None, "0.01,100") == (0.01, 100.0)
