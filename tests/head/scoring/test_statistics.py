import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, wilcoxon
from statsmodels.stats.multitest import multipletests

from mmap_st.head.scoring.statistics import holm, interval_over_patients, paired_difference


def test_with_one_slide_a_patient_the_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 15)
    found = interval_over_patients(values, [f"P{i}" for i in range(15)])
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=0)
    assert found == pytest.approx(tuple(theirs.confidence_interval), abs=0.03)


def test_slides_of_one_patient_do_not_count_as_independent() -> None:
    rng = np.random.default_rng(2)
    of_patient = rng.normal(size=8)
    values = np.repeat(of_patient, 5) + 0.01 * rng.normal(size=40)
    whole = interval_over_patients(values, [f"P{i // 5}" for i in range(40)])
    apart = interval_over_patients(values, [f"P{i}" for i in range(40)])
    assert whole is not None
    assert apart is not None
    assert whole[1] - whole[0] > 1.8 * (apart[1] - apart[0])
    assert whole == interval_over_patients(values, [f"P{i // 5}" for i in range(40)])  # repeatable


def test_intervals_of_patients_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        patient = np.repeat(rng.normal(size=25), 2)
        low, high = interval_over_patients(
            patient + rng.normal(size=50), [str(i // 2) for i in range(50)]
        ) or (0, 0)
        covered += low <= 0.0 <= high
    assert 0.89 <= covered / 200 <= 0.98


def test_few_patients_have_no_interval_and_no_p_value() -> None:
    two = paired_difference([1.0, 2.0], [0.0, 0.0], ["A", "B"])
    assert (two.mean, two.interval, two.p_value, two.patients) == (1.5, None, None, 2)
    five = paired_difference([1.0] * 5, [0.0] * 5, list("ABCDE"))
    assert five.interval == (1.0, 1.0)
    assert five.p_value is None


def test_differences_are_paired_and_tested_over_patients() -> None:
    rng = np.random.default_rng(4)
    patients = [f"P{i // 2}" for i in range(20)]
    slide = rng.normal(size=20) * 5
    first, second = slide + 0.3 + 0.2 * rng.normal(size=20), slide + 0.2 * rng.normal(size=20)
    found = paired_difference(first, second, patients)
    assert found.mean == pytest.approx((first - second).mean())
    assert found.interval is not None
    assert found.interval[0] > 0
    by_patient = (first - second).reshape(10, 2).mean(axis=1)
    assert found.p_value == pytest.approx(wilcoxon(by_patient).pvalue)
    assert found.patients == 10


def test_slides_that_lack_a_score_are_left_out() -> None:
    nan = float("nan")
    found = paired_difference([1.0, nan, 3.0, 4.0], [0.0, 0.0, nan, 1.0], list("ABCD"))
    assert found.mean == 2.0
    assert found.patients == 2
    none = paired_difference([nan], [1.0], ["A"])
    assert none.patients == 0
    assert np.isnan(none.mean)
    assert paired_difference([1.0] * 6, [1.0] * 6, list("ABCDEF")).p_value == 1.0


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12))
def test_corrected_p_values_are_those_of_statsmodels(p_values: list[float | None]) -> None:
    found = holm(p_values)
    assert [value is None for value in found] == [value is None for value in p_values]
    known = [value for value in p_values if value is not None]
    if known:
        with pytest.MonkeyPatch.context() as patch:  # it collects garbage each time: seconds in a long run
            patch.setattr("gc.collect", lambda: 0)
            theirs = multipletests(known, method="holm")[1]
        np.testing.assert_allclose([value for value in found if value is not None], theirs, atol=1e-12)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
