import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmap_st.errors import MissingDependencyError, RequestError, StoreError
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.prototypes.candidates import (
    CandidateSettings,
    automatic_clusters,
    build_candidates,
    select_prototypes,
    selected_count,
    selection_space,
)
from mmap_st.prototypes.stored import build_all, stored_candidates, stored_embeddings

ENCODER = "efficientnet-lite0"


def blobs(n: int = 90, centres: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(centres, 2, 16)) * 5
    kind = rng.integers(0, centres, n)
    return (means[kind] + rng.normal(size=(n, 2, 16)) * 0.1).astype(np.float32), kind


@given(st.integers(1, 100_000))
def test_the_number_of_candidates_follows_the_released_rule(n: int) -> None:
    k = automatic_clusters(n)
    assert k == min(int(np.clip(n // 5, 32, 80)), n)
    assert selected_count(k) == -(-k // 2)
    assert selected_count(k, 10) == min(10, k)


def test_known_clusters_are_found_and_described() -> None:
    embedding, kind = blobs()
    valid = np.ones(90, np.bool_)
    valid[[4, 50]] = False
    embedding[~valid] = np.nan
    found = build_candidates(embedding, valid, CandidateSettings(clusters=3, seed=1))
    assert found.centre.shape == (3, 2, 16)
    assert found.centre.dtype == np.float32
    assert found.label[~valid].tolist() == [-1, -1]
    assert found.size.sum() == 88
    for k in range(3):
        members = found.label == k
        assert len(set(kind[members])) == 1
        assert found.size[k] == members.sum()
        np.testing.assert_allclose(found.centre[k], embedding[members].mean(axis=0), rtol=1e-4, atol=1e-4)
        space = selection_space(embedding[members])
        distance = np.linalg.norm(space - selection_space(found.centre)[k], axis=1)
        assert found.medoid[k] == np.flatnonzero(members)[distance.argmin()]


def test_candidates_are_the_same_bit_for_bit_each_time() -> None:
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(400, 2, 64)).astype(np.float32)
    valid = np.ones(400, np.bool_)
    first, second = (build_candidates(embedding, valid, CandidateSettings()) for _ in range(2))
    assert len(first.size) == 80
    for name in ("centre", "size", "medoid", "label"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    other = build_candidates(embedding, valid, CandidateSettings(seed=1))
    assert other.centre.tobytes() != first.centre.tobytes()


def test_candidates_explain_more_than_random_spots() -> None:
    rng = np.random.default_rng(1)
    embedding = (rng.normal(size=(300, 1, 4)) @ rng.normal(size=(4, 32))).astype(np.float32)
    valid = np.ones(300, np.bool_)

    def unexplained(kind: str) -> float:
        found = build_candidates(embedding, valid, CandidateSettings(kind))
        space, centres = selection_space(embedding), selection_space(found.centre)
        return float(((space[:, None] - centres[None]) ** 2).sum(-1).min(1).mean())

    assert unexplained("kmeans") < 0.95 * unexplained("random")


def test_random_candidates_are_spots_and_own_themselves() -> None:
    embedding, _ = blobs()
    found = build_candidates(embedding, np.ones(90, np.bool_), CandidateSettings("random", clusters=7))
    assert len(found.size) == 7
    for k in range(7):
        assert np.array_equal(found.centre[k], embedding[found.medoid[k]])
        assert found.label[found.medoid[k]] == k


def test_random_candidates_stay_consistent_where_embeddings_repeat() -> None:
    embedding, _ = blobs(60)
    embedding[:20] = embedding[0]
    found = build_candidates(embedding, np.ones(60, np.bool_), CandidateSettings("random"))
    assert len(found.centre) == len(found.size) == len(found.medoid) < 32
    space, centres = selection_space(embedding), selection_space(found.centre)
    own = (space * centres[found.label]).sum(axis=1)
    np.testing.assert_allclose(own, (space @ centres.T).max(axis=1), rtol=1e-5)


def test_fewer_spots_than_clusters_and_spots_that_are_the_same() -> None:
    embedding, _ = blobs(5)
    found = build_candidates(embedding, np.ones(5, np.bool_), CandidateSettings())
    assert len(found.size) <= 5
    same = np.ones((40, 1, 3), np.float32)
    found = build_candidates(same, np.ones(40, np.bool_), CandidateSettings())
    assert found.size.sum() == 40
    assert (found.size > 0).all()
    np.testing.assert_allclose(found.centre, 1.0)


def test_what_cannot_be_clustered() -> None:
    embedding, _ = blobs(5)
    with pytest.raises(RequestError, match="no spot has a valid embedding"):
        build_candidates(embedding, np.zeros(5, np.bool_), CandidateSettings())
    with pytest.raises(RequestError, match="kind of candidates 'kmedoids'"):
        build_candidates(embedding, np.ones(5, np.bool_), CandidateSettings("kmedoids"))
    with pytest.raises(RequestError, match="--clusters 0"):
        build_candidates(embedding, np.ones(5, np.bool_), CandidateSettings(clusters=0))


def test_a_missing_faiss_is_one_sentence(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    embedding, _ = blobs(50)
    with pytest.raises(MissingDependencyError, match=r"mmap-st\[cpu\]"):
        build_candidates(embedding, np.ones(50, np.bool_), CandidateSettings())


VALUES = st.floats(2**-10, 10, width=32) | st.floats(-10, -(2**-10), width=32)


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float32, (6, 2, 3), elements=VALUES),
    arrays(np.float32, (5, 2, 3), elements=VALUES),
    st.integers(1, 5),
)
def test_selection_equals_the_plain_reference(embedding, centre, count) -> None:
    mask = select_prototypes(embedding, centre, count)
    assert (mask.sum(axis=1) == count).all()
    for i in range(6):

        def unit(x):
            return np.concatenate([m / np.linalg.norm(m) for m in x.astype(np.float64)])

        a = unit(embedding[i])
        cosine = np.array([a @ unit(c) / (np.linalg.norm(a) * np.linalg.norm(unit(c))) for c in centre])
        chosen, left = cosine[mask[i]], cosine[~mask[i]]
        assert left.size == 0 or chosen.min() >= left.max() - 1e-5


def test_ties_go_to_the_lower_index_and_invalid_spots_get_none() -> None:
    embedding = np.ones((2, 1, 4), np.float32)
    embedding[1] = np.nan
    mask = select_prototypes(embedding, np.ones((5, 1, 4), np.float32), 2)
    assert mask.tolist() == [[True, True, False, False, False], [False] * 5]


def test_candidates_are_stored_once_under_a_key_of_their_settings(store: FeatureStore) -> None:
    slide = store.slide("A1")
    first, built = stored_candidates(store, slide, ENCODER, (0.5, 1.0), CandidateSettings(seed=7))
    again, built_again = stored_candidates(store, slide, ENCODER, (0.5, 1.0), CandidateSettings(seed=7))
    assert (built, built_again) == (True, False)
    assert first.centre.tobytes() == again.centre.tobytes()
    embedding, valid = stored_embeddings(slide, ENCODER, (0.5, 1.0))
    direct = build_candidates(embedding, valid, CandidateSettings(seed=7))
    assert direct.centre.tobytes() == again.centre.tobytes()
    _, other = stored_candidates(store, slide, ENCODER, (0.5,), CandidateSettings(seed=7))
    assert other
    sets = slide.encoder_group(ENCODER)["prototypes"]
    for key in sets.group_keys():
        assert len(key) == 12
        assert sets[key].attrs["complete"] is True
        assert sets[key].attrs["settings"]["iterations"] == 25
        assert sets[key]["centre"].dtype == np.float32
        assert sets[key]["label"].dtype == np.int32


def test_an_encoder_that_the_store_does_not_have_is_an_error(store: FeatureStore) -> None:
    with pytest.raises(StoreError, match="did you mean efficientnet-lite0"):
        build_all(store, "efficientnet-lite", (0.5,), CandidateSettings())


def test_all_slides_are_built_and_others_passed_over(store: FeatureStore, tmp_path: Path) -> None:
    report = build_all(store, ENCODER, None, CandidateSettings(clusters=6))
    assert {name: k for name, (k, _) in report.built.items()} == dict.fromkeys(store.slides, 6)
    assert all(new for _, new in report.built.values())
    again = build_all(store, ENCODER, None, CandidateSettings(clusters=6))
    assert not any(new for _, new in again.built.values())
