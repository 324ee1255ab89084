"""ST-Net's mechanism: one linear layer on one magnification."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmap_st.errors import HeadError
from mmap_st.head.interface import parse_settings, plan_validation
from mmap_st.head.linear.ridge import ALPHAS, RidgeSettings, fit_ridge
from mmap_st.head.published.st_net import ST_NET, StNetSettings


def silent(text: str) -> None:
    pass


def fitted(slides, validation=(), **settings):
    return ST_NET.fit(slides, plan_validation(slides, validation), StNetSettings(**settings), 0, silent)


def alone(slides, number: int):
    return [replace(slide, embedding=slide.embedding[:, number - 1 : number]) for slide in slides]


def mixed_up(slides, number: int):
    """The slides with one magnification that tells nothing: its rows belong to other spots."""

    def of(slide, rng):
        embedding = slide.embedding.copy()
        embedding[:, number - 1] = rng.permutation(embedding[:, number - 1])
        return replace(slide, embedding=embedding)

    return [of(slide, np.random.default_rng(seed)) for seed, slide in enumerate(slides)]


@pytest.mark.parametrize("number", [1, 2])
def test_it_is_ridge_on_one_magnification(head_slides, number: int) -> None:
    *train, test = slides = head_slides(slides=4)
    head = fitted(train, magnification=number)
    *seen, unseen = alone(slides, number)
    ridge = fit_ridge(seen, plan_validation(seen, ()), RidgeSettings(), 0, silent)
    np.testing.assert_array_equal(head.predict(test), ridge.predict(unseen))
    assert head.chosen == {"magnification": number, "alpha": ridge.chosen["alpha"]}
    for ours, theirs in zip(head.held_out(), ridge.held_out(), strict=True):
        assert ours.slide.name == theirs.slide.name
        np.testing.assert_array_equal(ours.predicted, theirs.predicted)
        np.testing.assert_array_equal(ours.target(), theirs.target())


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("validate", [False, True])
def test_the_magnification_that_carries_the_signal_is_chosen(
    head_slides, number: int, validate: bool
) -> None:
    *train, test = mixed_up(head_slides(slides=5), 3 - number)
    head = fitted(train[:3], train[3:]) if validate else fitted(train)
    assert head.chosen["magnification"] == number
    tried = [(row["magnification"], row["alpha"]) for row in head.history]
    assert tried == [(m, alpha) for m in (1.0, 2.0) for alpha in ALPHAS]
    np.testing.assert_array_equal(head.predict(test), head.predict(mixed_up([test], 3 - number)[0]))


def test_a_magnification_that_is_not_there_is_refused(head_slides) -> None:
    with pytest.raises(HeadError, match="magnification=3: there are 2"):
        fitted(head_slides(slides=2), magnification=3)
    with pytest.raises(HeadError, match="magnification is 0"):
        parse_settings(ST_NET, ["magnification=0"])
