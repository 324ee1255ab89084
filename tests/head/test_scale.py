"""What is computed in blocks, on samples or on axes is what would be computed whole."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mmap_st.head.basis as basis_module
from mmap_st.data.cohort import Cohort
from mmap_st.data.targets import Targets
from mmap_st.extract.store.magnification import Magnification, StoredEmbeddings, row_blocks
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.basis import MOST_GENES, fit_basis, fit_components, validation_genes
from mmap_st.head.dataset import PrototypeSettings, load_slide, row_cache
from mmap_st.head.inputs import HeadSlide, RowCache, fit_scaler
from mmap_st.head.interface import Limits, Shape, plan_validation
from mmap_st.head.linear import ridge
from mmap_st.head.linear.mean import training_mean
from mmap_st.head.linear.ridge import RidgeSettings, fit_ridge, load_ridge
from mmap_st.head.mmap.features import slide_features
from mmap_st.head.mmap.fitting import MmapFit, MmapSettings, fit_mmap, load_mmap
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.prediction import predict_slides
from mmap_st.head.runs.request import fit_request
from mmap_st.head.scoring.metrics import gene_scores, gene_table, score_slides
from mmap_st.prototypes.candidates import CandidateSettings, build_candidates, select_prototypes

FAST = MmapSettings(width=16, heads=2, epochs=3, learning_rate=3e-3, members=1, device="cpu")
ENCODER = "efficientnet-lite0"


def silent(text: str) -> None:
    pass


def wide(slide: HeadSlide, genes: int, rank: int, seed: int = 0) -> HeadSlide:
    """The slide with many genes that follow few."""
    axes = np.random.default_rng(seed).normal(size=(rank, genes)) / np.sqrt(rank)
    values = np.maximum(slide.targets.dense()[:, :rank] @ axes, 0)
    return replace(slide, target=Targets.of_dense(values.astype(np.float32)))


@given(n=st.integers(1, 40), block=st.integers(1, 50), seed=st.integers(0, 999))
def test_the_standard_of_blocks_is_that_of_the_whole(n: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    embedding = rng.normal(rng.normal(0, 50, (2, 3)), rng.uniform(0, 3, (2, 3)), (n, 2, 3)).astype(np.float32)
    embedding[:, 1, 2] = 7.0
    valid = rng.random(n) < 0.8
    valid[0] = True
    embedding[~valid] = np.nan
    found = fit_scaler(embedding, valid, block * 2 * 3 * 4)
    whole = embedding[valid].astype(np.float64)
    np.testing.assert_allclose(found.mean, whole.mean(0), rtol=1e-9)
    spread = np.where(found.scale > 0, 1 / np.where(found.scale > 0, found.scale, 1), 0)
    np.testing.assert_allclose(spread, np.where(whole.std(0) > 1e-6, whole.std(0), 0), atol=1e-6)
    assert found.scale[1, 2] == 0


def test_stored_embeddings_read_as_an_array(store: FeatureStore) -> None:
    magnifications = list(store.slide("A1").complete(ENCODER).values())
    whole = np.stack([m.embedding() for m in magnifications], axis=1)
    stored = StoredEmbeddings(magnifications)
    assert stored.shape == whole.shape
    rows = np.arange(len(whole))
    for wanted in (slice(None), slice(3, 9), rows[::7], rows[:0]):
        np.testing.assert_array_equal(stored[wanted], whole[wanted])
    np.testing.assert_array_equal(stored.subset(rows[1::3])[np.array([0, 4])], whole[1::3][[0, 4]])
    cut = list(row_blocks(stored, rows[::2], 5 * 4 * whole[0].size))
    assert max(len(part) for _, part in cut) == 5
    np.testing.assert_array_equal(np.concatenate([part for _, part in cut]), rows[::2])


@pytest.mark.parametrize("kind", ["kmeans", "random"])
def test_candidates_and_selection_in_blocks_are_those_of_the_whole(kind: str) -> None:
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(200, 2, 8)).astype(np.float32)
    valid = rng.random(200) < 0.9
    embedding[~valid] = np.nan
    whole = build_candidates(embedding, valid, CandidateSettings(kind))
    blocks = build_candidates(embedding, valid, CandidateSettings(kind), block_bytes=1000)
    for name in ("centre", "size", "medoid", "label"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(blocks, name))
    np.testing.assert_array_equal(
        select_prototypes(embedding, whole.centre, 9),
        select_prototypes(embedding, whole.centre, 9, block_bytes=1000),
    )


def test_kmeans_on_a_sample_still_assigns_every_spot() -> None:
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(600, 1, 8)).astype(np.float32)
    found = build_candidates(
        embedding, np.ones(600, np.bool_), CandidateSettings(clusters=10), max_spots=200, block_bytes=1000
    )
    assert found.size.sum() == 600
    assert (found.label >= 0).all()
    for k in range(10):
        np.testing.assert_allclose(found.centre[k], embedding[found.label == k].mean(0), atol=1e-5)


@given(entries=st.integers(1, 200), seed=st.integers(0, 99))
def test_metrics_of_blocks_of_genes_are_those_of_the_whole(entries: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    measured = rng.normal(size=(20, 7)).astype(np.float32)
    predicted = measured + rng.normal(size=(20, 7)).astype(np.float32)
    measured[:3], measured[:, 4], predicted[5] = np.nan, np.nan, np.nan
    whole, blocks = gene_scores(predicted, measured), gene_scores(predicted, measured, entries)
    sparse = gene_scores(predicted, Targets.of_dense(measured), entries)
    for found in (blocks, sparse):
        assert found.summary().n_spots == whole.summary().n_spots
        for name in ("pcc", "mse", "mae"):
            expected = pytest.approx(getattr(whole.summary(), name), rel=1e-12)
            assert getattr(found.summary(), name) == expected
        np.testing.assert_allclose(found.pcc, whole.pcc, rtol=1e-12)
    sides = {"a": predicted}, {"a": Targets.of_dense(measured)}
    assert score_slides(*sides, [0, 2]).pcc_pooled == pytest.approx(whole.summary().pcc)
    assert gene_table(*sides)["slides"] == [1, 1, 1, 1, 0, 1, 1]


def test_features_of_some_spots_are_those_of_all(head_slides) -> None:
    (slide,) = head_slides(slides=1)
    slide.valid[4] = False
    components = fit_components([slide], 6)
    features = slide_features(slide, components)
    small = slide_features(slide, components, block_bytes=300)
    np.testing.assert_allclose(features.own, small.own, atol=1e-6)
    rows = np.array([50, 4, 7, 8])
    np.testing.assert_allclose(small.blocks(rows), features.blocks()[rows], atol=1e-6)


def test_fits_in_small_blocks_predict_the_same(head_slides, lacking, monkeypatch) -> None:
    *train, test = head_slides(slides=4)
    train[0] = lacking(train[0], genes=(1,), spots=(2,))
    validation = plan_validation(train, [])
    whole = fit_mmap(train, validation, FAST, 0, silent)
    small = fit_mmap(train, validation, FAST, 0, silent, Limits(block=7))
    np.testing.assert_allclose(small.predict(test), whole.predict(test), atol=1e-5)
    probe = fit_ridge(train, validation, RidgeSettings(), 0, silent).predict(test)
    monkeypatch.setattr(ridge, "_BLOCK_BYTES", 1000)
    np.testing.assert_allclose(
        fit_ridge(train, validation, RidgeSettings(), 0, silent).predict(test), probe, atol=1e-5
    )


def test_a_slide_in_a_store_is_fitted_as_one_in_memory(store: FeatureStore) -> None:
    prototypes = PrototypeSettings(CandidateSettings())
    rng = np.random.default_rng(0)
    stored, held = [], []
    for name in ("A1", "B1", "C1"):
        slide = load_slide(store, name, ENCODER, (0.5, 1.0), prototypes=prototypes)
        target = Targets.of_dense(rng.random((len(slide), 4)).astype(np.float32))
        stored.append(replace(slide, target=target))
        held.append(replace(slide, target=target, embedding=slide.embedding[:]))
    for fit, settings in ((fit_mmap, FAST), (fit_ridge, RidgeSettings())):
        for train in (slice(0, 2), slice(0, 1)):  # folds by slide, and by blocks of one
            first, second = (
                fit(slides[train], plan_validation(slides[train], []), settings, 0, silent).predict(slides[2])
                for slides in (stored, held)
            )
            np.testing.assert_array_equal(first, second)


def test_a_big_cohort_is_bounded_by_its_limits(head_slides) -> None:
    train = head_slides(slides=5, spots=80)
    limits = Limits(attention=100, epoch=32, validation=20, block=16)
    validation = plan_validation(train, [])
    fit = MmapFit(train, validation, FAST, 0, limits)
    assert sum(len(p.rows) for p in fit._train) == 100
    assert sum(len(spots.positions) for trial in fit.trials for spots in trial.validation) == 20
    assert fit_mmap(train[:4], validation, FAST, 0, silent, limits).predict(train[4]).shape == (80, 5)
    fit_mmap(train[:3], plan_validation(train[:3], train[3:]), FAST, 0, silent, limits)


@pytest.mark.parametrize("spots", [9, 60])  # fewer rows than features, and more
def test_as_many_axes_as_genes_are_the_genes(head_slides, spots: int) -> None:
    *train, test = head_slides(spots=spots)
    validation = plan_validation(train, [])
    plain = replace(FAST, blend=0.0)
    for fit, settings in ((fit_mmap, plain), (fit_ridge, RidgeSettings())):
        genes = fit(train, validation, settings, 0, silent)
        axes = fit(train, validation, replace(settings, rank=5), 0, silent)
        np.testing.assert_allclose(axes.predict(test), genes.predict(test), atol=1e-4)
        assert axes.chosen == genes.chosen


def test_axes_of_many_genes_are_those_of_their_covariance(head_slides, monkeypatch) -> None:
    train = head_slides(slides=3, spots=80, genes=30, noise=0.05)
    exact = fit_basis(train, 6).axes
    monkeypatch.setattr(basis_module, "MOST_GENES", 10)
    iterated = fit_basis(train, 6).axes
    assert exact is not None
    assert iterated is not None
    np.testing.assert_allclose(np.abs((exact * iterated).sum(axis=0)), 1.0, atol=1e-3)
    np.testing.assert_allclose(exact.T @ exact, np.eye(6), atol=1e-5)


def test_axes_span_what_genes_share_and_a_head_of_them_is_saved(head_slides) -> None:
    *train, test = (wide(slide, MOST_GENES + 20, 3) for slide in head_slides(noise=0.05))
    basis = fit_basis(train, 8)
    assert basis.axes.shape == (MOST_GENES + 20, 8)
    np.testing.assert_allclose(basis.axes.T @ basis.axes, np.eye(8), atol=1e-5)
    centred = test.targets.dense() - test.targets.dense().mean(0)
    projected = basis.expression(centred @ basis.axes)
    assert ((centred - projected) ** 2).sum() < 0.15 * (centred**2).sum()
    assert len(validation_genes(train)) == MOST_GENES
    validation, shape = plan_validation(train, []), Shape(2, 12, MOST_GENES + 20)
    for fit, load, settings in (
        (fit_mmap, load_mmap, replace(FAST, rank=8)),
        (fit_ridge, load_ridge, RidgeSettings(rank=8)),
    ):
        fitted = fit(train, validation, settings, 0, silent)
        found = fitted.predict(test)
        assert score_slides({"t": found}, {"t": test.target}, [0]).pcc_slide > 0.5
        np.testing.assert_array_equal(load(fitted.tensors(), settings, shape).predict(test), found)


def test_coordinates_of_a_slide_that_lacks_genes_are_least_squares(head_slides, lacking) -> None:
    whole = [wide(slide, 40, 3) for slide in head_slides(slides=4)]
    *train, test = whole
    basis = fit_basis(train, 3)
    rows = np.arange(60)
    values = basis.expression(basis.coordinates(test.targets).rows(rows))  # exactly on the axes
    exact = replace(test, target=Targets.of_dense(values))
    part = lacking(exact, genes=tuple(range(0, 40, 4)), spots=(2,))
    found = basis.coordinates(part.targets).rows(rows)
    assert np.isnan(found[2]).all()
    expected = basis.coordinates(exact.targets).rows(rows)
    np.testing.assert_allclose(np.delete(found, 2, 0), np.delete(expected, 2, 0), rtol=0.01, atol=0.01)
    # A head that is fitted on such slides says much the same as one fitted on whole ones.
    fewer = [lacking(slide, genes=(1, 5)) for slide in train[:1]] + train[1:]
    both = [
        fit_ridge(slides, plan_validation(slides, []), RidgeSettings(10.0, rank=3), 0, silent).predict(test)
        for slides in (train, fewer)
    ]
    assert np.abs(both[0] - both[1]).mean() < 0.1 * both[0].std()


@pytest.mark.parametrize("rank", [None, 3])
def test_a_slides_mean_has_the_mean_of_its_coordinates(head_slides, lacking, rank: int | None) -> None:
    train = head_slides(slides=3, genes=9)
    train[0] = lacking(train[0], genes=(1, 2, 5))
    basis = fit_basis(train, rank)
    for slide in train:
        coordinates = basis.coordinates(slide.targets)
        there = coordinates.present
        mean = coordinates.rows(np.arange(len(slide))).mean(axis=0)
        np.testing.assert_allclose(coordinates.of(training_mean([slide]))[there], mean[there], atol=1e-4)


def test_a_fit_reads_each_stored_row_once(
    cohort: Cohort, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "features.zarr"
    shutil.copytree(store.path, copied)
    for candidates in copied.glob("*/*/prototypes"):  # built anew, from the rows that are read for the fit
        shutil.rmtree(candidates)
    read: dict[str, int] = {}
    rows_of = Magnification.embedding_rows

    def counted(self: Magnification, rows: slice = slice(None)) -> np.ndarray:
        values = rows_of(self, rows)
        read[self.group.path] = read.get(self.group.path, 0) + len(values)
        return values

    monkeypatch.setattr(Magnification, "embedding_rows", counted)
    pairs = ("epochs=1", "components=16", "device=cpu")
    request = fit_request(ENCODER, "mmap", pairs=pairs, genes="hvg:12", test="slide=E1")
    fit_head(cohort, FeatureStore.open(copied), request, tmp_path / "run")
    assert len(read) == 2 * len(store.slides)
    for path, rows in read.items():
        assert rows == len(store.slide(path.split("/")[0]).spot_ids())
    read.clear()
    predict_slides(tmp_path / "run", FeatureStore.open(copied), tmp_path / "out", ["E1"])
    assert set(read.values()) == {len(store.slide("E1").spot_ids())}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])  # of the rows that there is room for
def test_cached_rows_read_as_stored_rows(store: FeatureStore, share: float) -> None:
    magnifications = list(store.slide("A1").complete(ENCODER).values())
    stored = StoredEmbeddings(magnifications)
    whole = stored[:]
    cache = RowCache(int(share * whole.nbytes))
    rows = np.arange(len(whole))
    for cached, expected in (
        (cache.of(stored), whole),
        (cache.of(stored).at(1), whole[:, 1:]),
        (cache.of(stored).subset(rows[1::3]), whole[1::3]),
        (cache.of(stored).subset(rows[1::3]).subset(rows[:9:2]).at(0), whole[1::3][:9:2, :1]),
    ):
        assert cached.shape == expected.shape
        for wanted in (slice(None), slice(2, 5), np.array([0, 3, 4]), rows[:0]):
            np.testing.assert_array_equal(cached[wanted], expected[wanted])
    assert not cache.reserve(int(share * whole.nbytes) + 1)


@pytest.mark.parametrize(("share", "held"), [(1.0, True), (0.5, True), (0.49, False)])
def test_embeddings_are_held_where_half_of_them_has_room(
    store: FeatureStore, monkeypatch, share: float, held: bool
) -> None:
    names, mpps = ("A1", "B1"), (0.5, 1.0)
    size = sum(StoredEmbeddings([store.slide(n).complete(ENCODER)[m]])[:].nbytes for n in names for m in mpps)
    monkeypatch.setattr("mmap_st.head.dataset.MAX_BYTES", int(share * size))
    assert row_cache(store, names, (ENCODER,), mpps).reserve(int(share * size)) == held
