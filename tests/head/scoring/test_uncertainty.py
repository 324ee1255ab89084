"""Spreads and calibrated intervals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmap_st.data.cohort import Cohort
from mmap_st.data.targets import Targets
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import HeldOut, plan_validation
from mmap_st.head.linear.ridge import RidgeSettings, fit_ridge
from mmap_st.head.mmap.fitting import MmapSettings, fit_mmap
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.prediction import predict_slides
from mmap_st.head.runs.prediction_files import read_prediction
from mmap_st.head.runs.request import fit_request
from mmap_st.head.runs.saved_head import read_head
from mmap_st.head.scoring.uncertainty import Coverage, Spread, coverage, fit_spread, is_spread, saved_spread


def made_slides(number: int, spots: int, seed: int) -> list[HeadSlide]:
    """Slides whose targets are zero-inflated and noisier where they are high, patients differing in noise."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(8, 6)) / np.sqrt(8)
    slides = []
    for index in range(number):
        embedding = rng.normal(size=(spots, 1, 8)).astype(np.float32)
        mean = np.exp(0.7 * embedding[:, 0] @ weight)
        noise = rng.lognormal(0.0, 0.25)
        target = np.log1p(rng.poisson(mean * rng.gamma(1 / noise, noise, mean.shape)))
        slides.append(
            HeadSlide(
                f"S{index}",
                f"P{index}",
                tuple(map(str, range(spots))),
                rng.uniform(0, 1000, (spots, 2)),
                embedding,
                np.ones(spots, np.bool_),
                Targets.of_dense(target.astype(np.float32)),
            )
        )
    return slides


@pytest.mark.parametrize("own_slides_validate", [True, False])
def test_intervals_hold_the_truth_of_new_patients_as_often_as_they_say(own_slides_validate: bool) -> None:
    """Over 24 patients, calibrated on 8 others: those that validate, or those that train, by folds."""
    found = []
    for seed in range(4):
        slides = made_slides(40, 80, seed)
        test, calibrate, train = slides[:24], slides[24:32], slides[32:]
        held_back = calibrate if own_slides_validate else []
        fitted_on = train if own_slides_validate else calibrate
        head = fit_ridge(fitted_on, plan_validation(fitted_on, held_back), RidgeSettings(), 0, print)
        rows = np.arange(80)
        held_out = [HeldOut(s, rows, head.predict(s)) for s in held_back] or head.held_out()
        spread = fit_spread(held_out)
        assert spread is not None
        measured = {slide.name: slide.targets for slide in test}
        shares = coverage(spread, {slide.name: head.predict(slide) for slide in test}, measured)
        assert len(shares.slides) == 24
        found.append(shares.coverage)
    assert 0.87 <= np.mean(found) <= 0.93


def test_the_spread_grows_where_errors_do() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.uniform(0, 4, (4000, 2)).astype(np.float32)
    noise = np.stack([np.sqrt(0.1 + 0.5 * predicted[:, 0]), np.full(4000, 0.7)], axis=1)
    target = predicted + noise * rng.normal(size=predicted.shape)
    spread = fit_spread([held(predicted, target)])
    assert spread is not None
    np.testing.assert_allclose(spread.of(predicted), noise, rtol=0.15)
    np.testing.assert_allclose(spread.factor, 1.645, rtol=0.05)  # of a normal distribution
    assert np.isnan(spread.of(np.full((1, 2), np.nan, np.float32))).all()


@pytest.mark.parametrize("growing", [True, False])
def test_spots_far_from_the_training_tissue_have_wider_intervals_where_their_errors_are_larger(
    growing: bool,
) -> None:
    rng = np.random.default_rng(3)
    distance = np.exp(rng.uniform(-1, 1, 4000)).astype(np.float32)
    variance = np.maximum(1 + 0.8 * np.log(distance), 1) if growing else 1 - 0.8 * np.log(distance)
    predicted = rng.uniform(0, 4, (4000, 5)).astype(np.float32)
    target = predicted + np.sqrt(variance)[:, None] * rng.normal(size=predicted.shape)
    part, known = held(predicted, target), fit_spread([held(predicted, target)])
    spread = fit_spread([part], [distance])
    assert spread is not None
    assert known is not None
    inside = np.abs(predicted - target) <= spread.factor * spread.of(predicted, distance=distance)
    assert inside.mean() == pytest.approx(0.9, abs=0.01)
    if growing:
        assert spread.by_distance[1] > 0.2
        for least, most in ((0.37, 0.6), (0.6, 1.6), (1.6, 2.7)):
            assert inside[(least <= distance) & (distance < most)].mean() == pytest.approx(0.9, abs=0.04)
        far = np.abs(predicted - target)[distance > 1.6] <= known.factor * known.of(predicted)[distance > 1.6]
        assert far.mean() < 0.85
    else:  # strange tissue is not predicted better for being so
        assert spread.by_distance.tolist() == [1, 0]
        np.testing.assert_allclose(spread.factor, known.factor, rtol=1e-5)
    # Distances that are not known are typical ones, and there are bounds.
    unknown = np.array([np.nan, 1.0, 1e-30, 1e30], np.float32)
    found = spread.of(np.ones((4, 5), np.float32), distance=unknown)
    assert found[0] == pytest.approx(spread.of(np.ones((1, 5), np.float32))[0])
    if growing:
        assert found[3] == pytest.approx(2 * found[0])
        assert found[2] == pytest.approx(found[0])


def test_a_spread_of_before_is_read_without_distances() -> None:
    one = np.ones(3, np.float32)
    before = {"spread.intercept": one, "spread.slope": one, "spread.typical": one, "spread.factor": one}
    read = saved_spread(before)
    assert read is not None
    assert read.by_distance.tolist() == [1, 0]
    again = saved_spread(replace(read, by_distance=np.array([0.5, 2], np.float32)).tensors())
    assert again is not None
    assert again.by_distance.tolist() == [0.5, 2]
    assert all(is_spread(name) for name in again.tensors())


def test_every_patient_counts_the_same() -> None:
    rng = np.random.default_rng(1)
    quiet = [held(np.zeros((9000, 1)), rng.normal(size=(9000, 1)), "A")]
    loud = [held(np.zeros((100, 1)), 10 * rng.normal(size=(100, 1)), "B")]
    spread = fit_spread([*quiet, *loud])
    assert spread is not None
    reach = float(spread.factor[0] * spread.of(np.zeros((1, 1), np.float32))[0, 0])
    inside = [np.mean(np.abs(part.target()) <= reach) for part in (*quiet, *loud)]
    assert np.mean(inside) == pytest.approx(0.9, abs=0.01)
    assert inside[1] < 0.85  # the quiet patient has 90 times its spots, and no more weight


def test_undefined_targets_are_left_out_and_a_gene_without_any_has_no_interval() -> None:
    rng = np.random.default_rng(2)
    predicted = rng.normal(size=(500, 3))
    target = predicted + rng.normal(size=(500, 3))
    gaps = target.copy()
    gaps[:100] = np.nan
    gaps[:, 2] = np.nan
    spread = fit_spread([held(predicted, gaps)])
    kept = fit_spread([held(predicted[100:, :1], target[100:, :1])])
    assert spread is not None
    assert kept is not None
    assert spread.factor[0] == pytest.approx(kept.factor[0])
    assert spread.intercept[0] == pytest.approx(kept.intercept[0])
    assert spread.factor[2] == 0
    assert fit_spread([]) is None


def held(predicted: np.ndarray, target: np.ndarray, patient: str = "A") -> HeldOut:
    n = len(predicted)
    slide = HeadSlide(
        patient,
        patient,
        tuple(map(str, range(n))),
        np.zeros((n, 2)),
        np.zeros((n, 1, 1), np.float32),
        np.ones(n, np.bool_),
        Targets.of_dense(target.astype(np.float32)),
    )
    return HeldOut(slide, np.arange(n), predicted.astype(np.float32))


def test_coverage_by_hand() -> None:
    one, none = np.ones(1, np.float32), np.zeros(1, np.float32)
    spread = Spread(4 * one, none, 4 * one, 1.5 * one)
    predicted = {"a": np.zeros((4, 1), np.float32), "b": np.array([[1.0], [np.nan]], np.float32)}
    measured = {"a": np.array([[2.9], [-3.1], [0], [np.nan]]), "b": np.array([[1.0], [1.0]])}
    found = coverage(spread, predicted, {k: Targets.of_dense(v) for k, v in measured.items()})
    assert found == Coverage(pytest.approx(5 / 6), 6.0, {"a": 2 / 3, "b": 1.0})


def test_what_mmap_held_out_is_what_fits_without_the_fold_predict(head_slides) -> None:
    """With its choices given, a fit on the other slides alone predicts the same."""
    slides = head_slides(slides=3)
    settings = MmapSettings(epochs=4, width=16, members=1, alpha=10.0, blend=0.0, prototypes="none")
    head = fit_mmap(slides, plan_validation(slides, ()), settings, 0, print)
    parts = {part.slide.name: part for part in head.held_out()}
    assert parts.keys() == {"S0", "S1", "S2"}
    for name, part in parts.items():
        others = [slide for slide in slides if slide.name != name]
        (slide,) = (slide for slide in slides if slide.name == name)
        assert len(part.rows) == len(slide)
        alone = fit_mmap(others, plan_validation(others, ()), settings, 0, print).predict(slide)
        # Components are those of all training slides: no expression is in them.
        correlation = np.corrcoef(part.predicted.ravel(), alone[part.rows].ravel())[0, 1]
        assert correlation > 0.95
        changed = replace(slide, target=Targets.of_dense(slide.targets.dense() + 5))
        again = fit_mmap(
            [changed if s.name == name else s for s in slides],
            plan_validation([changed if s.name == name else s for s in slides], ()),
            settings,
            0,
            print,
        )
        (same,) = (p for p in again.held_out() if p.slide.name == name)
        np.testing.assert_allclose(same.predicted, part.predicted, atol=1e-5)


@pytest.mark.parametrize("head", ["mmap", "ridge", "mean"])
def test_runs_keep_spreads_and_predict_gives_them_again(
    head: str, cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    pairs = ("epochs=3", "width=16", "members=1") if head == "mmap" else ()
    request = fit_request("efficientnet-lite0", head, "default", pairs, None, genes="all", test="patient=E")
    metrics = fit_head(cohort, store, request, tmp_path / "run").metrics
    found = metrics.prediction_intervals
    assert found.level == 0.9
    assert found.calibrated_on == "inner folds by patient"
    assert found.patients == 4
    assert 0.7 < found.coverage <= 1
    table = read_prediction(tmp_path / "run" / "predictions" / "E1.h5ad")
    reach = table.layers["spread"] * table.var["interval_90"].to_numpy()
    inside = np.abs(table.X - table.layers["measured"]) <= reach
    assert inside.mean() == pytest.approx(found.coverage, abs=1e-6)
    saved = read_head(tmp_path / "run")
    assert saved.spread is not None
    again = predict_slides(tmp_path / "run", store, tmp_path / "again", ["E1"]).written["E1"]
    np.testing.assert_array_equal(read_prediction(again).layers["spread"], table.layers["spread"])


def test_slides_that_validate_calibrate(cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    request = fit_request(
        "efficientnet-lite0",
        "ridge",
        "default",
        (),
        None,
        genes="all",
        test="patient=E",
        validation="patient=D",
    )
    found = fit_head(cohort, store, request, tmp_path / "run").metrics.prediction_intervals
    assert found.calibrated_on == "validation slides"
    assert found.patients == 1
