"""The adjusted Rand index of clustered predictions, on made labels."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from mmap_st.head.scoring.metrics import region_agreement


def made(n: int = 90, regions: int = 3, apart: float = 6.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    of = np.arange(n) % regions
    centre = rng.normal(size=(regions, 30)) * apart
    predicted = (centre[of] + rng.normal(size=(n, 30))).astype(np.float32)
    ids = [f"{i}x0" for i in range(n)]
    return predicted, ids, {spot: f"region {region}" for spot, region in zip(ids, of, strict=True)}


def test_regions_that_lie_apart_are_found() -> None:
    assert region_agreement(*made()) == pytest.approx(1.0)


def test_labels_by_chance_agree_with_nothing() -> None:
    predicted, ids, labels = made(n=300)
    mixed = list(labels.values())
    np.random.default_rng(1).shuffle(mixed)
    found = region_agreement(predicted, ids, dict(zip(ids, mixed, strict=True)))
    assert abs(found) < 0.03


def test_some_spots_in_the_wrong_region_lower_it_as_they_should() -> None:
    predicted, ids, labels = made()
    truth = list(labels.values())
    told = dict(labels)
    for spot in ids[:18]:
        told[spot] = "region 0"
    found = region_agreement(predicted, ids, told)
    assert found == pytest.approx(adjusted_rand_score(list(told.values()), truth))
    assert 0.4 < found < 0.95


def test_spots_without_a_region_or_a_prediction_are_left_out() -> None:
    predicted, ids, labels = made()
    predicted[0] = np.nan
    labels[ids[1]] = "undetermined"
    labels.pop(ids[2])
    labels["elsewhere"] = "region 7"
    assert region_agreement(predicted, ids, labels) == pytest.approx(1.0)


def test_one_region_or_few_spots_have_no_index_and_one_prediction_for_all_has_0() -> None:
    predicted, ids, labels = made()
    assert region_agreement(predicted, ids, dict.fromkeys(labels, "cancer")) is None
    assert region_agreement(predicted, ids, dict(list(labels.items())[:9])) is None
    assert region_agreement(np.ones_like(predicted), ids, labels) == 0.0
