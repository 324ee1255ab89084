"""The trainer of the HEST-Benchmark, against its steps written out."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmap_st.data.targets import Targets
from mmap_st.errors import HeadError
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import Shape, best_of, parse_settings, plan_validation
from mmap_st.head.linear.hest_ridge import HEST_RIDGE, HEST_RIDGE_TUNED
from mmap_st.head.scoring.metrics import slide_metrics


def fit(train, *pairs: str):
    settings = parse_settings(HEST_RIDGE, pairs)
    return HEST_RIDGE.fit(train, plan_validation(train, ()), settings, 0, lambda text: None)


def pooled(slides: list[HeadSlide]) -> tuple[np.ndarray, np.ndarray]:
    return tuple(
        np.concatenate(parts)
        for parts in zip(*((s.embedding.reshape(len(s), -1), s.targets.dense()) for s in slides), strict=True)
    )


@pytest.mark.parametrize(
    ("spots", "width", "asked", "components"),
    [(300, 20, 256, 40), (40, 150, 256, 120), (40, 150, 30, 30), (300, 300, 256, 256)],
)
def test_it_is_the_benchmarks_steps(head_slides, spots, width, asked, components) -> None:
    *train, test = head_slides(slides=4, spots=spots, width=width)
    head = fit(train, f"components={asked}")
    x, y = pooled(train)
    steps = make_pipeline(StandardScaler(), PCA(components, random_state=1))
    features = steps.fit_transform(x).astype(np.float32)
    alpha = 100 / (components * 5)
    ridge = Ridge(solver="lsqr", alpha=alpha, fit_intercept=False, max_iter=1000, random_state=1)
    ridge.fit(features, y)
    expected = ridge.predict(steps.transform(pooled([test])[0]).astype(np.float32))
    np.testing.assert_allclose(head.predict(test), expected, atol=2e-5)
    assert head.chosen == {"alpha": alpha, "components": components}


def test_a_loaded_head_predicts_the_same_to_the_bit(head_slides) -> None:
    *train, test = head_slides()
    test.valid[3] = False
    head = fit(train)
    loaded = HEST_RIDGE.load(head.tensors(), parse_settings(HEST_RIDGE, ()), Shape(2, 12, 5))
    found = loaded.predict(test)
    np.testing.assert_array_equal(found, head.predict(test))
    assert np.isnan(found[3]).all()
    assert np.isfinite(np.delete(found, 3, axis=0)).all()


@pytest.mark.parametrize("noise", [0.3, 3.0])
def test_the_tuned_one_takes_the_strength_that_held_out_slides_prefer(head_slides, noise: float) -> None:
    *train, test = head_slides(slides=5, spots=40, width=60, noise=noise)
    head = HEST_RIDGE_TUNED.fit(
        train, plan_validation(train, ()), parse_settings(HEST_RIDGE_TUNED, ()), 0, lambda text: None
    )
    assert [row["strength"] for row in head.history] == [100.0 * 10**power for power in range(8)]
    strength = best_of(head.history)["strength"]
    assert head.chosen["alpha"] == strength / (head.chosen["components"] * 5)
    x, y = pooled(train)
    steps = make_pipeline(StandardScaler(), PCA(head.chosen["components"], random_state=1))
    ridge = Ridge(
        solver="lsqr", alpha=head.chosen["alpha"], fit_intercept=False, max_iter=1000, random_state=1
    )
    ridge.fit(steps.fit_transform(x).astype(np.float32), y)
    expected = ridge.predict(steps.transform(pooled([test])[0]).astype(np.float32))
    np.testing.assert_allclose(head.predict(test), expected, atol=2e-5)
    published = slide_metrics(fit(train).predict(test), test.targets.dense())
    assert slide_metrics(head.predict(test), test.targets.dense()).pcc >= published.pcc
    assert len(head.held_out()) == 4


def test_one_gene_alone(head_slides) -> None:
    *train, test = head_slides(genes=1)
    assert fit(train).predict(test).shape == (60, 1)


def test_what_cannot_be_pooled_or_set_is_refused(head_slides) -> None:
    train = head_slides()
    lacking = train[1].targets.dense()
    lacking[:, 2] = np.nan
    with pytest.raises(HeadError, match="1 gene of the panel is missing from training slide S1"):
        fit([train[0], replace(train[1], target=Targets.of_dense(lacking))])
    with pytest.raises(HeadError, match="components is 0"):
        fit(train, "components=0")
