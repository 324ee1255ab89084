"""The mean of the nearest training spots."""

from __future__ import annotations

import numpy as np
import pytest

from mmap_st.errors import HeadError
from mmap_st.head.interface import parse_settings, plan_validation
from mmap_st.head.linear.mean import training_mean
from mmap_st.head.published import knn
from mmap_st.head.published.knn import KNN, NEIGHBOURS
from mmap_st.head.scoring.metrics import slide_metrics


def silent(text: str) -> None:
    pass


def fitted(train, *pairs: str):
    return KNN.fit(train, plan_validation(train, ()), parse_settings(KNN, pairs), 0, silent)


def test_it_is_the_mean_of_the_nearest_by_hand(head_slides) -> None:
    *train, test = head_slides()
    head = fitted(train, "neighbours=7")

    def inputs(slide):
        x = slide.embedding.astype(np.float64)
        standard = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
        return np.einsum("nmd,mdc->nmc", standard, head.components.axes).reshape(len(x), -1)

    keys = np.concatenate([inputs(slide) for slide in train])
    difference = np.concatenate([s.targets.dense() - s.targets.dense().mean(axis=0) for s in train])
    distance = ((inputs(test)[:, None] - keys) ** 2).sum(axis=2)
    nearest = np.argsort(distance, axis=1)[:, :7]
    expected = difference[nearest].mean(axis=1) + training_mean(train)
    np.testing.assert_allclose(head.predict(test), expected, atol=1e-5)


def test_noise_asks_for_more_neighbours(head_slides) -> None:
    clean, noisy = (fitted(head_slides(slides=6, width=2, noise=noise)) for noise in (0.0, 5.0))
    assert clean.chosen["neighbours"] < noisy.chosen["neighbours"]
    assert [row["neighbours"] for row in clean.history] == list(NEIGHBOURS)


def test_genes_that_a_slide_lacks_are_averaged_over_the_others(head_slides, lacking) -> None:
    *train, test = head_slides(slides=3)
    train[0] = lacking(train[0], genes=(1,))
    # So many that every spot of the other slide is among them.
    predicted = fitted(train, "neighbours=120").predict(test)
    np.testing.assert_allclose(predicted[:, 1], train[1].targets.dense()[:, 1].mean(), atol=1e-5)


def test_big_panels_are_averaged_on_shared_axes(head_slides, lacking) -> None:
    *train, test = head_slides(slides=4, genes=40, width=2)
    head = fitted(train, "rank=4", "neighbours=10")
    assert head.tensors()["spots_values"].shape == (180, 4)
    assert slide_metrics(head.predict(test), test.targets.dense())["pcc"] > 0.6
    train[0] = lacking(train[0], genes=tuple(range(20)))
    values = fitted(train, "rank=4", "neighbours=10").values
    assert np.abs(values[:60].mean(axis=0)).max() < 0.02  # differences from the slide's own mean


def test_what_is_kept_is_bounded(head_slides, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "MAX_SPOTS", 50)
    *train, test = head_slides()
    head = fitted(train, "neighbours=5")
    assert len(head.keys) == len(head.values) == 45
    assert np.isfinite(head.predict(test)).all()


@pytest.mark.parametrize("pair", ["neighbours=0", "components=0", "rank=0"])
def test_settings_are_checked(pair: str) -> None:
    with pytest.raises(HeadError, match=pair.split("=")[0]):
        parse_settings(KNN, [pair])
