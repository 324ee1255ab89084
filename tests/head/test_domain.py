"""How far slides lie from the training tissue: what is like it is not flagged, what is not like it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmap_st.head.domain import (
    Domain,
    distances,
    domain_folds,
    fit_domain,
    fit_tissue,
    saved_domain,
    slide_distance,
)
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import HeldOut, Validation

WIDTH, SCALES = 64, 2


class Maker:
    """Tissue whose embeddings scatter along ten axes, and a little everywhere."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.axes = self.rng.normal(size=(SCALES, 10, WIDTH))

    def slide(self, name: str, patient: str = "A", *, spots: int = 80, shift: float = 0.3) -> HeadSlide:
        latent = self.rng.normal(size=(spots, SCALES, 10)) + shift * self.rng.normal(size=(SCALES, 10))
        embedding = np.einsum("nma,mad->nmd", latent, self.axes)
        embedding += 0.3 * self.rng.normal(size=embedding.shape) + 5.0
        return of(name, patient, embedding)

    def odd(self, name: str, *, spots: int = 80) -> HeadSlide:
        """Tissue of other axes."""
        other = Maker(int(self.rng.integers(1 << 30)))
        return other.slide(name, "Z", spots=spots)


def of(name: str, patient: str, embedding: np.ndarray) -> HeadSlide:
    n = len(embedding)
    side = int(np.ceil(np.sqrt(n)))
    return HeadSlide(
        name=name,
        patient=patient,
        ids=tuple(map(str, range(n))),
        xy=np.stack(divmod(np.arange(n), side), axis=1) * 100.0,
        embedding=embedding.astype(np.float32),
        valid=np.ones(n, np.bool_),
    )


def domain_of(slides: list[HeadSlide]) -> Domain:
    found = fit_domain(slides, [np.full(len(slide), number) for number, slide in enumerate(slides)])
    assert found is not None
    return found.domain


def test_the_distance_is_mahalanobis_along_the_axes_and_what_is_left_beside_them() -> None:
    embedding = np.random.default_rng(0).normal(size=(200, 1, 12)).astype(np.float32)
    tissue = fit_tissue(embedding)
    apart = embedding[:, 0] - embedding[:, 0].mean(axis=0)
    values, vectors = np.linalg.eigh(apart.T @ apart / 200)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = 3  # a fourth of 12
    along = (apart @ vectors) ** 2
    expected = (along[:, :kept] / values[:kept]).mean(axis=1) / 2
    expected += along[:, kept:].sum(axis=1) / values[kept:].sum() / 2
    assert tissue.distance(embedding) == pytest.approx(expected, rel=1e-3)
    assert tissue.distance(embedding).mean() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("spots", [30, 64, 65, 300])
def test_fewer_and_more_spots_than_numbers_give_the_same_kind_of_axes(spots: int) -> None:
    tissue = fit_tissue(np.random.default_rng(1).normal(size=(spots, SCALES, WIDTH)).astype(np.float32))
    for axes, spread in zip(tissue.axes, tissue.spread, strict=True):
        used = axes[spread > 0]
        assert used @ used.T == pytest.approx(np.eye(len(used)), abs=1e-4)
        assert (np.diff(spread[spread > 0]) <= 1e-6).all()


def test_held_out_slides_are_rarely_called_unlike_and_other_tissue_is() -> None:
    called, odd = [], []
    for seed in range(20):
        make = Maker(seed)
        domain = domain_of([make.slide(f"A{number}") for number in range(4)])
        called += [domain.judge(make.slide("new")).unlike for _ in range(5)]
        odd.append(domain.judge(make.odd("odd")).unlike)
    assert np.mean(called) <= 0.05
    assert all(odd)


def test_one_training_slide_is_held_against_itself() -> None:
    make = Maker(3)
    train = [make.slide("A1", spots=150)]
    fitted = fit_domain(train, domain_folds(train, Validation("", (), refit=True)))
    assert fitted is not None
    domain = fitted.domain
    assert len(domain.slides) == 6
    assert not domain.judge(make.slide("new")).unlike
    assert domain.judge(make.odd("odd")).unlike


def test_spots_have_distances_of_their_own_and_half_a_slide_may_be_anything() -> None:
    make = Maker(4)
    domain = domain_of([make.slide(f"A{number}") for number in range(3)])
    mixed = np.concatenate([make.slide("a").embedding[:], make.odd("b").embedding[:]])
    slide = of("mixed", "A", mixed)
    found = domain.judge(replace(slide, valid=np.arange(160) != 5))
    assert np.isnan(found.spots[5])
    assert np.nanmax(found.spots[:80]) < found.spots[80:].min()
    assert (found.spot_percentile[80:] == 100).all()
    assert np.nanmedian(found.spot_percentile[:80]) == pytest.approx(50, abs=25)
    assert not found.unlike


def test_a_slide_without_valid_spots_is_neither() -> None:
    make = Maker(5)
    domain = domain_of([make.slide("A1"), make.slide("A2")])
    slide = make.slide("A3")
    found = domain.judge(replace(slide, valid=np.zeros(len(slide), np.bool_)))
    assert np.isnan(found.slide)
    assert not found.unlike
    assert not found.far


def test_percentiles_are_among_held_out_training_slides() -> None:
    make = Maker(6)
    slides = [make.slide(f"A{number}") for number in range(5)]
    domain = domain_of(slides)
    by_hand = [
        slide_distance(
            distances(fit_tissue(np.concatenate([s.embedding[:] for s in slides if s is not slide])), slide)
        )
        for slide in slides
    ]
    assert domain.slides == pytest.approx(by_hand, rel=1e-3)
    found = domain.judge(make.odd("odd"))
    assert found.slide_percentile == 100
    assert found.far
    nearest = np.quantile(distances(domain.tissue, slides[0]), 0.1)
    assert domain.judge(slides[0]).slide == pytest.approx(nearest / np.median(by_hand), rel=1e-3)


def test_large_cohorts_are_sampled_and_too_little_is_nothing() -> None:
    make = Maker(7)
    large = [make.slide(f"A{number}", spots=900) for number in range(3)]
    domain = domain_of(large)
    assert not domain.judge(make.slide("new")).unlike
    one = make.slide("A1", spots=1)
    assert fit_domain([one], [np.zeros(1, np.int64)]) is None
    same = of("same", "A", np.ones((50, SCALES, WIDTH)))
    assert fit_domain([same, same], [np.zeros(50, np.int64), np.ones(50, np.int64)]) is None


def test_held_out_spots_have_the_distance_from_tissue_that_they_are_not_of() -> None:
    make = Maker(9)
    slides = [make.slide("A1"), make.slide("A2"), make.slide("A3")]
    folds = [np.full(80, number) for number in range(3)]
    fitted = fit_domain(slides, folds)
    assert fitted is not None
    rows = np.array([3, 7, 50])
    others = fit_tissue(np.concatenate([slides[0].embedding[:], slides[2].embedding[:]]))
    by_hand = others.distance(slides[1].embedding[rows]) / fitted.domain.typical
    part = HeldOut(slides[1], rows, np.zeros((3, 1), np.float32))
    assert fitted.held_out_distance(part) == pytest.approx(by_hand, rel=1e-3)
    new = make.slide("new")
    of_new = fitted.domain.judge(new).spots[rows]
    assert fitted.held_out_distance(HeldOut(new, rows, part.predicted)) == pytest.approx(of_new, rel=1e-4)


def test_parts_of_one_slide_are_found_by_the_ids_of_their_spots() -> None:
    make = Maker(10)
    slide = make.slide("A1", spots=120)
    fitted = fit_domain([slide], domain_folds([slide], Validation("", (), refit=True)))
    assert fitted is not None
    every = np.arange(120)
    whole = fitted.held_out_distance(HeldOut(slide, every, np.zeros((120, 1), np.float32)))
    assert np.isfinite(whole).all()
    half = slide.rows(every % 2 == 1)
    part = fitted.held_out_distance(HeldOut(half, np.arange(60), np.zeros((60, 1), np.float32)))
    assert np.array_equal(part, whole[1::2])


def test_it_is_saved_and_read() -> None:
    make = Maker(8)
    domain = domain_of([make.slide("A1"), make.slide("A2")])
    again = saved_domain({"weight": np.zeros(3), **domain.tensors()})
    assert again is not None
    slide = make.slide("new")
    assert np.array_equal(again.judge(slide).spots, domain.judge(slide).spots)
    assert saved_domain({"weight": np.zeros(3)}) is None
