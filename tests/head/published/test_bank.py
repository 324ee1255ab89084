"""Training spots that heads refer to: the nearest, whose they are, their average, how many are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmap_st.head.networks.network import SpotBlock, TrainingBlock, split_into_blocks
from mmap_st.head.published.bank import average, nearest, nearest_of_others, owner_keys, reference_rows


def made(n: int, width: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def test_the_nearest_are_those_of_least_distance() -> None:
    queries, keys = made(7), made(30, seed=1)
    distance = ((queries[:, None] - keys) ** 2).sum(axis=2)
    np.testing.assert_array_equal(nearest(queries, keys, 5), np.argsort(distance, axis=1)[:, :5])
    assert nearest(queries, keys, 99).shape == (7, 30)


def test_an_average_leaves_out_what_is_undefined() -> None:
    values, found = made(20), np.random.default_rng(2).integers(0, 20, (6, 3))
    np.testing.assert_allclose(average(values, found), values[found].mean(axis=1), atol=1e-6)
    values[:15, 1] = np.nan
    values[:, 2] = np.nan
    found[0], found[1] = (0, 16, 17), (1, 2, 3)
    mean = average(values, found)
    np.testing.assert_allclose(mean[0, 1], values[[16, 17], 1].mean(), atol=1e-6)
    assert mean[1, 1] == 0
    assert (mean[:, 2] == 0).all()
    np.testing.assert_allclose(mean[:, 0], values[found, 0].mean(axis=1), atol=1e-6)


def test_others_are_of_another_patient_else_slide_else_spot(head_slides) -> None:
    slides = head_slides(slides=3, spots=10)
    slides[1] = replace(slides[1], patient="P0")
    parts = [part for slide in slides for part in split_into_blocks(slide)]
    kept, keys = np.concatenate([owner_keys(part) for part in parts]), made(30)
    slide_of = np.repeat([0, 1, 2], 10)

    def found(part: SpotBlock, bank: list[int]) -> np.ndarray:
        among = np.flatnonzero(np.isin(slide_of, bank))
        own = keys[slide_of == parts.index(part)]
        return among[nearest_of_others(own, owner_keys(part), keys[among], kept[among], 8)]

    assert set(slide_of[found(parts[0], [0, 1, 2])].ravel()) == {2}
    assert set(slide_of[found(parts[0], [0, 1])].ravel()) == {1}
    alone = found(parts[0], [0])
    assert alone.shape == (10, 8)
    assert not (alone == np.arange(10)[:, None]).any()
    distance = ((keys[:10, None] - keys[:10]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(alone, np.argsort(distance, axis=1)[:, 1:9])


def test_spots_that_are_not_kept_find_as_many_in_their_own_slide(head_slides) -> None:
    (slide,) = head_slides(slides=1, spots=20)
    judged, kept = (
        owner_keys(SpotBlock(slide, np.arange(start, start + 10))) for start in (0, 10)
    )  # as folds of one slide
    queries, keys = made(10), made(10, seed=1)
    found = nearest_of_others(queries, judged, keys, kept, 3)
    np.testing.assert_array_equal(found, nearest(queries, keys, 3))
    assert nearest_of_others(queries, judged, keys[:1], kept[:1], 3).shape == (10, 0)


def test_a_slide_of_no_known_patient_is_a_patient_of_its_own(head_slides) -> None:
    one, two = (owner_keys(SpotBlock(replace(s, patient=None), np.arange(5))) for s in head_slides(slides=2))
    assert one[0, 0] != two[0, 0]
    assert len(np.unique(np.concatenate([one, two])[:, 2])) == 10


@pytest.mark.parametrize(("most", "count"), [(100, 27), (27, 27), (14, 14), (9, 9), (10, 9)])
def test_no_more_spots_are_kept_than_allowed(head_slides, most: int, count: int) -> None:
    train = [
        TrainingBlock(split_into_blocks(slide)[0], made(10)) for slide in head_slides(slides=3, spots=10)
    ]
    train[0].target[:3] = np.nan
    kept = reference_rows(train, most)
    assert sum(map(len, kept)) == count
    assert [positions.min() >= first for positions, first in zip(kept, (3, 0, 0), strict=True)] == [True] * 3
