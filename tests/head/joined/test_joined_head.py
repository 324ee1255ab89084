"""A head of several encoders: each fits the slides as it sees them, and predictions are averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import (
    HeadMethod,
    Shape,
    Validation,
    make_settings,
    plan_validation,
    predict_held_out,
    settings_values,
)
from mmap_st.head.joined import JoinedHead, best_weights, fit_joined, join_slides, load_joined, seen_by
from mmap_st.head.registry import HEADS

NAMES = ("first", "second")
QUICK = {"epochs": 2, "members": 1, "width": 16, "heads": 2}


def silent(text: str) -> None:
    pass


def quick(method: HeadMethod):
    known = settings_values(method.settings_type())
    return make_settings(method, {key: value for key, value in QUICK.items() if key in known})


def seen_otherwise(slide: HeadSlide, width: int, noise: float, seed: int = 1) -> HeadSlide:
    """The slide in the embeddings of another encoder: of another width, with what it does not see."""
    rng = np.random.default_rng(seed)
    axes = rng.normal(size=(slide.embedding.shape[2], width)) / np.sqrt(width)
    of_slide = np.random.default_rng(int(slide.name[1:]))
    embedding = slide.embedding[:] @ axes
    embedding = embedding + noise * of_slide.normal(size=embedding.shape)
    return replace(slide, embedding=embedding.astype(np.float32), target=None, centre=None, selected=None)


@pytest.fixture
def joined_slides(head_slides) -> Callable[..., list[HeadSlide]]:
    def make(slides: int = 4, *, noise: float = 0.5, width: int = 9, **more) -> list[HeadSlide]:
        return [join_slides([s, seen_otherwise(s, width, noise)]) for s in head_slides(slides, **more)]

    return make


def fitted(method: HeadMethod, train, validation: Validation, encoders=NAMES) -> JoinedHead:
    head = fit_joined(method, encoders, train, validation, quick(method), 0, silent)
    assert isinstance(head, JoinedHead)
    return head


@pytest.mark.parametrize("name", ["ridge", "hest-ridge", "knn", "mean", "st-net"])
def test_it_is_the_weighted_mean_of_a_fit_for_each(name: str, joined_slides) -> None:
    method = HEADS[name]
    *train, test = joined_slides()
    head = fitted(method, train, plan_validation(train, ()))
    expected = np.zeros((len(test), 5))
    held_out = []
    for number, weight in enumerate(head.weights):
        slides = seen_by(train, number)
        alone = method.fit(slides, plan_validation(slides, ()), quick(method), 0, silent)
        expected += weight * alone.predict(test.by_encoder[number])
        held_out.append(alone.held_out())
    np.testing.assert_allclose(head.predict(test), expected, atol=1e-6)
    assert head.weights == pytest.approx(best_weights(held_out), abs=1e-6)
    for part, parts in zip(head.held_out(), zip(*held_out, strict=True), strict=True):
        by_hand = sum(w * one.predicted for w, one in zip(head.weights, parts, strict=True))
        np.testing.assert_allclose(part.predicted, by_hand, atol=1e-6)
        assert np.array_equal(part.rows, parts[0].rows)
        assert np.array_equal(part.target(), parts[0].target(), equal_nan=True)


@pytest.mark.parametrize("name", ["mmap", "ridge", "histogene"])
def test_it_is_saved_and_loaded_to_the_bit(name: str, joined_slides) -> None:
    method = HEADS[name]
    *train, test = joined_slides()
    settings = quick(method)
    if name == "mmap":  # the second encoder has no candidates here
        settings = replace(settings, prototypes="none")
    head = fit_joined(method, NAMES, train, plan_validation(train, ()), settings, 0, silent)
    shapes = [Shape(2, 12, 5), Shape(2, 9, 5)]
    again = load_joined(method, NAMES, head.tensors(), settings, shapes)
    assert np.array_equal(again.predict(test), head.predict(test))


def test_every_encoder_has_tokens_of_its_own(joined_slides) -> None:
    def with_grids(slide: HeadSlide) -> HeadSlide:
        """With a 2 x 2 grid of tokens, each the embedding."""
        return replace(slide, tokens=np.repeat(slide.embedding[:][:, :, None], 4, axis=2))

    tcgn = HEADS["tcgn"]
    *train, test = (join_slides([with_grids(seen) for seen in slide.by_encoder]) for slide in joined_slides())
    head = fitted(tcgn, train, plan_validation(train, ()))
    assert np.isfinite(head.predict(test)).all()
    assert [seen.grids.shape[-1] for seen in test.by_encoder] == [12, 9]
    part = test.rows(np.arange(len(test)) < 7)
    assert [len(seen.grids[:]) for seen in part.by_encoder] == [7, 7]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_encoder_of_noise_weighs_next_to_nothing(place: int, head_slides) -> None:
    def view(slide: HeadSlide, number: int) -> HeadSlide:
        return seen_otherwise(slide, 12, 1e3 if number == place else 0.4, seed=number)

    slides = [
        replace(join_slides([view(slide, number) for number in range(3)]), target=slide.target)
        for slide in head_slides(slides=4)
    ]
    head = fitted(HEADS["ridge"], slides, plan_validation(slides, ()), ("a", "b", "c"))
    assert head.weights[place] < 0.05
    assert head.weights.sum() == pytest.approx(1)


def test_weights_are_those_of_spots_that_no_fit_saw(joined_slides) -> None:
    """A head that repeats its training spots in one encoder, and knows nothing of others, has no weight."""
    ridge = HEADS["ridge"]
    train = joined_slides(noise=0.3, width=9)

    def useless(slide: HeadSlide) -> HeadSlide:
        rng = np.random.default_rng(int(slide.name[1:]))
        embedding = rng.normal(size=(len(slide), 2, 200)).astype(np.float32)
        return replace(slide, others=(replace(slide.others[0], embedding=embedding),))

    train = [useless(slide) for slide in train]
    settings = make_settings(ridge, {"alpha": 1e-6})  # it repeats every training spot
    head = fit_joined(ridge, NAMES, train, plan_validation(train, ()), settings, 0, silent)
    assert isinstance(head, JoinedHead)
    errors = [
        np.mean([np.square(one.predict(s.by_encoder[k]) - s.targets.dense()).mean() for s in train])
        for k, one in enumerate(head.members)
    ]
    assert errors[1] < 0.5 * errors[0]
    assert head.weights[1] < 0.1


def test_slides_that_validate_choose_where_there_are_some(joined_slides) -> None:
    *train, held_back = joined_slides(slides=5)
    head = fitted(HEADS["ridge"], train, plan_validation(train, [held_back]))
    parts = [[predict_held_out(member, held_back.by_encoder[k], 1)] for k, member in enumerate(head.members)]
    assert head.weights == pytest.approx(best_weights(parts))
    assert not head.held_out()
    assert head.chosen["weights_chosen"] == "validation slides"


@dataclass(frozen=True)
class Tampered:
    """A head whose held-out predictions are others."""

    head: object
    parts: tuple

    def __getattr__(self, name: str):
        return getattr(self.head, name)

    def held_out(self):
        return self.parts


@pytest.mark.parametrize("keep", ["none", "other spots of one"])
def test_without_predictions_of_the_same_spots_all_weigh_the_same(keep: str, joined_slides) -> None:
    ridge = HEADS["ridge"]

    def fit(train, validation, settings, seed, tell):
        head = ridge.fit(train, validation, settings, seed, tell)
        parts = tuple(head.held_out())
        if keep == "none":
            return Tampered(head, ())
        narrow = train[0].embedding.shape[2] == 9
        return Tampered(
            head,
            tuple(replace(p, rows=p.rows[:5], predicted=p.predicted[:5]) for p in parts) if narrow else parts,
        )

    train = joined_slides()
    head = fitted(replace(ridge, fit=fit), train, plan_validation(train, ()))
    assert head.weights.tolist() == [0.5, 0.5]
    assert not head.held_out()
    assert "the same for all" in head.chosen["weights_chosen"]


def test_what_was_chosen_is_said(joined_slides) -> None:
    train = joined_slides()
    head = fitted(HEADS["ridge"], train, plan_validation(train, ()))
    chosen = head.chosen
    assert chosen["weights"] == dict(zip(NAMES, head.weights.tolist(), strict=True))
    assert chosen["weights_chosen"] == "inner folds by patient"
    assert list(chosen["encoders"]) == list(NAMES)
    for name, member in zip(NAMES, head.members, strict=True):
        assert chosen["encoders"][name] == member.chosen
    assert {row["encoder"] for row in head.history} == {0, 1}


def test_a_spot_is_valid_where_it_is_for_every_encoder(joined_slides) -> None:
    *train, test = joined_slides()

    def without(slide: HeadSlide, row: int) -> HeadSlide:
        valid = slide.valid.copy()
        valid[row] = False
        return replace(slide, valid=valid)

    first, second = test.by_encoder
    slide = join_slides([without(first, 2), without(replace(second, target=None), 5)])
    assert np.flatnonzero(~slide.valid).tolist() == [2, 5]
    for seen in slide.by_encoder:
        assert np.array_equal(seen.valid, slide.valid)
        assert np.array_equal(seen.usable, slide.usable)
    head = fitted(HEADS["ridge"], [*train, slide], plan_validation([*train, slide], ()))
    assert np.flatnonzero(np.isnan(head.predict(slide)).any(axis=1)).tolist() == [2, 5]


def test_parts_of_a_slide_are_parts_for_every_encoder(joined_slides) -> None:
    slide, *_ = joined_slides()
    keep = np.arange(len(slide)) % 3 == 0
    part = slide.rows(keep)
    for whole, seen in zip(slide.by_encoder, part.by_encoder, strict=True):
        assert not seen.others
        assert np.array_equal(seen.embedding[:], whole.embedding[:][keep])
        assert np.array_equal(seen.targets.dense(), slide.targets.dense()[keep])
    assert part.by_encoder is part.by_encoder  # made once: scalers are kept
    for one in slide.by_magnification:
        assert not one.others


def test_one_slide_alone_is_cut_for_every_encoder(joined_slides) -> None:
    train = joined_slides(slides=1, spots=90)
    head = fitted(HEADS["ridge"], train, plan_validation(train, ()))
    assert len(head.held_out()) == 3
    for part in head.held_out():
        assert len(part.slide.by_encoder) == 2
    assert head.predict(train[0]).shape == (90, 5)


def test_of_one_encoder_nothing_is_joined(head_slides) -> None:
    train = head_slides()
    ridge = HEADS["ridge"]
    settings = quick(ridge)
    head = fit_joined(ridge, ("only",), train, plan_validation(train, ()), settings, 0, silent)
    alone = ridge.fit(train, plan_validation(train, ()), settings, 0, silent)
    assert type(head) is type(alone)
    assert head.tensors().keys() == alone.tensors().keys()
    assert join_slides(train[:1]) is train[0]
    assert train[0].by_encoder == (train[0],)
    loaded = load_joined(ridge, ("only",), head.tensors(), settings, [Shape(2, 12, 5)])
    assert np.array_equal(loaded.predict(train[0]), head.predict(train[0]))


@pytest.mark.parametrize("wrong", [[1.0], [0.5, 0.6], [1.5, -0.5], [np.nan, np.nan]])
def test_weights_that_are_none_are_refused(wrong: list[float], joined_slides) -> None:
    train = joined_slides()
    ridge = HEADS["ridge"]
    head = fitted(ridge, train, plan_validation(train, ()))
    tensors = {**head.tensors(), "joined.weights": np.array(wrong)}
    with pytest.raises(ValueError, match="weights of 2 encoders"):
        load_joined(ridge, NAMES, tensors, quick(ridge), [Shape(2, 12, 5), Shape(2, 9, 5)])
