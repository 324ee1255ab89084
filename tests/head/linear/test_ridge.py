import numpy as np
import pytest
from sklearn.linear_model import Ridge

from mmap_st.errors import HeadError
from mmap_st.head.basis import Basis
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import Shape, Validation, parse_settings, plan_validation
from mmap_st.head.linear.mean import training_mean
from mmap_st.head.linear.ridge import ALPHAS, RIDGE, RidgePath, RidgeSettings, fit_ridge, load_ridge


def silent(text: str) -> None:
    pass


def reference(train: list[HeadSlide], test: HeadSlide, alpha: float) -> np.ndarray:
    """Embeddings standardised in each slide, targets centred in each training slide, sklearn's Ridge."""

    def inputs(slide):
        x = slide.embedding.reshape(len(slide), -1).astype(np.float64)
        return (x - x.mean(0)) / x.std(0)

    centred = np.concatenate([s.targets.dense() - s.targets.dense().mean(0) for s in train])
    model = Ridge(alpha).fit(np.concatenate([inputs(s) for s in train]), centred)
    return model.predict(inputs(test)) + np.concatenate([s.targets.dense() for s in train]).mean(0)


@pytest.mark.parametrize("spots", [8, 60])  # fewer rows than columns, and more
@pytest.mark.parametrize("alpha", [1.0, 100.0])
def test_the_closed_form_is_sklearns_ridge(head_slides, spots: int, alpha: float) -> None:
    *train, test = head_slides(spots=spots)
    fitted = fit_ridge(train, plan_validation(train, []), RidgeSettings(alpha), 0, silent)
    np.testing.assert_allclose(fitted.predict(test), reference(train, test, alpha), atol=2e-4)


def test_genes_that_a_slide_lacks_are_fitted_on_the_others(head_slides, lacking) -> None:
    *train, test = head_slides(slides=4)
    train[0] = lacking(train[0], genes=(1,))
    train[1] = lacking(train[1], spots=(3,))  # and a spot without a target
    fitted = fit_ridge(train, plan_validation(train, []), RidgeSettings(10.0), 0, silent)
    alone = fit_ridge(train[1:], plan_validation(train[1:], []), RidgeSettings(10.0), 0, silent)
    np.testing.assert_allclose(fitted.predict(test)[:, 1], alone.predict(test)[:, 1], atol=1e-5)
    assert np.isfinite(fitted.predict(test)).all()


def test_a_gene_that_no_slide_has_is_predicted_as_zero(head_slides, lacking) -> None:
    train = [lacking(slide, genes=(0,)) for slide in head_slides(slides=2)]
    assert (RidgePath(train, Basis(None, 5)).weight(1.0)[:, 0] == 0).all()
    assert training_mean(train)[0] == 0


def test_the_strength_is_chosen_on_inner_folds(head_slides) -> None:
    clean = head_slides(slides=6, noise=0.05, seed=1)
    noisy = head_slides(slides=6, noise=20.0, seed=1)
    chosen = [
        fit_ridge(s, plan_validation(s, []), RidgeSettings(), 0, silent).chosen["alpha"]
        for s in (clean, noisy)
    ]
    assert chosen[0] < chosen[1]
    fitted = fit_ridge(clean, plan_validation(clean, []), RidgeSettings(), 0, silent)
    assert [row["alpha"] for row in fitted.history] == list(ALPHAS)


def test_all_components_change_nothing_and_few_change_something(head_slides) -> None:
    *train, test = head_slides(width=6)
    validation = plan_validation(train, [])
    plain, all_of_them, few = (
        fit_ridge(train, validation, RidgeSettings(10.0, pca), 0, silent).predict(test)
        for pca in (None, 12, 2)
    )
    np.testing.assert_allclose(plain, all_of_them, atol=1e-3)
    assert np.abs(plain - few).max() > 0.01
    with pytest.raises(HeadError, match="pca=99"):
        fit_ridge(train, validation, RidgeSettings(10.0, 99), 0, silent)


def test_it_is_saved_and_loaded_and_invalid_spots_are_nan(head_slides) -> None:
    *train, test = head_slides()
    test.valid[5] = False
    test.embedding[5] = np.nan
    fitted = fit_ridge(train, plan_validation(train, []), RidgeSettings(10.0), 0, silent)
    loaded = load_ridge(fitted.tensors(), RidgeSettings(), Shape(2, 12, 5))
    assert np.array_equal(fitted.predict(test), loaded.predict(test), equal_nan=True)
    assert np.isnan(fitted.predict(test)).any(axis=1).tolist() == [i == 5 for i in range(60)]


def test_a_slide_without_any_valid_spot_is_not_a_crash(head_slides) -> None:
    (slide,) = head_slides(slides=1)
    slide.valid[:] = False
    assert (slide.standardised(np.arange(60)) == 0).all()


def test_training_needs_a_spot(head_slides) -> None:
    train = head_slides(slides=2)
    for slide in train:
        slide.valid[:] = False
    with pytest.raises(HeadError, match="no training spot"):
        fit_ridge(train, Validation("none", (), True), RidgeSettings(1.0), 0, silent)


@pytest.mark.parametrize(
    ("pair", "part"),
    [
        ("alfa=1", "did you mean alpha"),
        ("alpha", "no setting"),
        ("alpha=big", "is not a finite number"),
        ("alpha=-1", "must be greater than 0"),
        ("pca=0", "must be 1 or more"),
    ],
)
def test_settings_are_checked(pair: str, part: str) -> None:
    with pytest.raises(HeadError, match=part):
        parse_settings(RIDGE, [pair])


def test_settings_are_read_by_their_kind() -> None:
    assert parse_settings(RIDGE, ["alpha=1e5", "pca=256"]) == RidgeSettings(1e5, 256)
    assert parse_settings(RIDGE, ["alpha=auto"]).alpha is None
