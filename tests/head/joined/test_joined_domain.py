"""Where the training tissue lies for each of several encoders: a slide is as strange as the strangest says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmap_st.head.domain import Strangeness, fit_domain, strangest
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import HeldOut
from mmap_st.head.joined import JoinedDomain, fit_joined_domain, join_slides, saved_joined_domain
from mmap_st.head.joined.joined_domain import FittedJoinedDomain

WIDTHS, SPOTS = (20, 32), 80


class Maker:
    """Slides as two encoders see them, each along axes of its own."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.axes = [self.rng.normal(size=(8, width)) for width in WIDTHS]

    def slide(self, name: str, odd: int | None = None, constant: int | None = None) -> HeadSlide:
        """A slide; in the encoder `odd` it is of other axes, in `constant` all its spots are the same."""
        seen = []
        for number, axes in enumerate(self.axes):
            drawn = self.rng.normal(size=axes.shape) if number == odd else axes
            embedding = self.rng.normal(size=(SPOTS, 8)) @ drawn
            embedding = embedding + 0.3 * self.rng.normal(size=embedding.shape)
            if number == constant:
                embedding = np.ones_like(embedding)
            seen.append(
                HeadSlide(
                    name=name,
                    patient=None,
                    ids=tuple(map(str, range(SPOTS))),
                    xy=np.zeros((SPOTS, 2)),
                    embedding=embedding[:, None].astype(np.float32),
                    valid=np.ones(SPOTS, np.bool_),
                )
            )
        return join_slides(seen)


def fitted(slides: list[HeadSlide]) -> FittedJoinedDomain:
    found = fit_joined_domain(slides, [np.full(SPOTS, number) for number in range(len(slides))])
    assert isinstance(found, FittedJoinedDomain)
    return found


@pytest.mark.parametrize("odd", [0, 1])
def test_a_slide_that_one_encoder_finds_strange_is_strange(odd: int) -> None:
    make = Maker(0)
    domain = fitted([make.slide(f"A{number}") for number in range(3)]).domain
    assert not domain.judge(make.slide("new")).unlike
    slide = make.slide("odd", odd=odd)
    found = domain.judge(slide)
    of_encoders = [part.judge(seen) for part, seen in zip(domain.parts, slide.by_encoder, strict=True)]
    assert of_encoders[odd].unlike
    assert not of_encoders[1 - odd].unlike
    assert found.unlike
    assert (found.slide, found.limit) == (of_encoders[odd].slide, of_encoders[odd].limit)
    assert np.array_equal(found.spots, np.maximum(*(one.spots for one in of_encoders)))
    assert np.array_equal(found.spot_percentile, np.maximum(*(one.spot_percentile for one in of_encoders)))


def of(slide: float, percentile: float, limit: float) -> Strangeness:
    return Strangeness(np.zeros(1, np.float32), np.zeros(1, np.float32), slide, percentile, limit)


@pytest.mark.parametrize(
    ("found", "which"),
    [
        ([of(1.0, 50, 2.0), of(1.5, 80, 2.0)], 1),
        ([of(1.9, 90, 2.2), of(1.5, 100, 2.0)], 1),  # far, though nearer to its limit
        ([of(2.5, 100, 2.4), of(2.6, 100, 4.0)], 0),  # unlike
        ([of(float("nan"), float("nan"), 2.0), of(float("nan"), float("nan"), 2.0)], 0),
    ],
)
def test_the_worse_verdict_counts(found: list[Strangeness], which: int) -> None:
    worst = strangest(found)
    assert worst.limit == found[which].limit
    assert worst.slide == found[which].slide or np.isnan(worst.slide)


def test_held_out_spots_are_as_far_as_the_farther_says() -> None:
    make = Maker(1)
    slides = [make.slide(f"A{number}") for number in range(3)]
    folds = [np.full(SPOTS, number) for number in range(3)]
    found = fitted(slides)
    rows = np.array([2, 40, 41])
    part = HeldOut(slides[1], rows, np.zeros((3, 1), np.float32))
    alone = []
    for number in range(2):
        of_encoder = fit_domain([slide.by_encoder[number] for slide in slides], folds)
        assert of_encoder is not None
        alone.append(of_encoder.held_out_distance(replace(part, slide=slides[1].by_encoder[number])))
    assert np.array_equal(found.held_out_distance(part), np.maximum(*alone))


def test_an_encoder_that_cannot_tell_is_left_out() -> None:
    make = Maker(2)
    slides = [make.slide(f"A{number}", constant=0) for number in range(3)]
    found = fitted(slides)
    assert found.parts[0] is None
    new = make.slide("new", constant=0)
    assert found.domain.parts[1] is not None
    alone = found.domain.parts[1].judge(new.by_encoder[1])
    assert np.array_equal(found.domain.judge(new).spots, alone.spots)
    again = saved_joined_domain(found.domain.tensors(), 2)
    assert isinstance(again, JoinedDomain)
    assert again.parts[0] is None
    nothing = [join_slides([make.slide("A", constant=0).by_encoder[0]] * 2) for _ in range(2)]
    assert fit_joined_domain(nothing, [np.zeros(SPOTS), np.ones(SPOTS)]) is None


def test_it_is_saved_and_read() -> None:
    make = Maker(3)
    domain = fitted([make.slide("A1"), make.slide("A2")]).domain
    again = saved_joined_domain({"weight": np.zeros(3), **domain.tensors()}, 2)
    assert again is not None
    slide = make.slide("new")
    assert np.array_equal(again.judge(slide).spots, domain.judge(slide).spots)
    assert saved_joined_domain({"weight": np.zeros(3)}, 2) is None


def test_of_one_encoder_it_is_its_own() -> None:
    make = Maker(4)
    slides = [make.slide(f"A{number}").by_encoder[1] for number in range(3)]
    folds = [np.full(SPOTS, number) for number in range(3)]
    found, alone = fit_joined_domain(slides, folds), fit_domain(slides, folds)
    assert found is not None
    assert alone is not None
    assert type(found) is type(alone)
    tensors = found.domain.tensors()
    assert tensors.keys() == alone.domain.tensors().keys()
    again = saved_joined_domain(tensors, 1)
    assert again is not None
    assert np.array_equal(again.judge(slides[0]).spots, alone.domain.judge(slides[0]).spots)
