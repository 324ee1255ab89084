import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmap_st.data.counts import make_counts
from mmap_st.data.panel import choose_panel, target_moments
from mmap_st.data.targets import (
    LOG1P_10K,
    LOG1P_COUNTS,
    LOG10_PANEL,
    LOG10_PANEL_SMOOTHED,
    targets_from_counts,
)
from mmap_st.errors import CountsError, PanelError

TABLES = arrays(np.float32, (5, 4), elements=st.integers(0, 30).map(float))
IDS = ("a", "b", "c", "d", "e")
GENES = ("G0", "G1", "G2", "G3")


@given(TABLES, st.permutations([*IDS, "x", "y"]), st.permutations([*GENES, "N"]))
def test_rows_and_columns_are_those_of_the_dense_table(table, ids, genes) -> None:
    counts = make_counts(IDS, GENES, table)
    rows = counts.rows_of(ids)
    dense = {name: table[i] for i, name in enumerate(IDS)}
    assert rows.ids == tuple(ids)
    assert np.array_equal(rows.matrix.toarray(), [dense.get(name, np.zeros(4)) for name in ids])
    columns, present = counts.columns_of(genes)
    assert present.tolist() == [g in GENES for g in genes]
    expected = [table[:, GENES.index(g)] if g in GENES else np.zeros(5) for g in genes]
    assert np.array_equal(columns.toarray(), np.array(expected).T)


def test_indices_keep_32_bits_through_rows_columns_and_targets() -> None:
    counts = make_counts(["a", "b", "c"], ["X", "Y", "Z"], np.arange(9, dtype=np.float32).reshape(3, 3))
    chosen = counts.rows_of(["c", "a", "x"])
    for matrix in (
        counts.matrix,
        chosen.matrix,
        chosen.columns_of(["Z", "X"])[0],
        targets_from_counts(chosen, ("Z", "X"), LOG1P_10K).values,
    ):
        assert (matrix.indices.dtype, matrix.indptr.dtype) == (np.int32, np.int32)


@given(TABLES)
def test_targets_are_log1p_of_counts_per_ten_thousand_over_all_genes(table) -> None:
    counts = make_counts(IDS, GENES, table)
    found = targets_from_counts(counts, ("G2", "absent", "G0")).dense()
    library = table.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.log1p(table / library * 1e4)
    expected[library[:, 0] == 0] = np.nan
    np.testing.assert_allclose(found[:, [0, 2]], expected[:, [2, 0]], rtol=1e-5)
    assert np.isnan(found[:, 1]).all()


def test_moments_match_numpy_over_pooled_spots_and_skip_empty_ones() -> None:
    rng = np.random.default_rng(0)
    tables = {"s": rng.poisson(3, (6, 4)), "t": rng.poisson(3, (5, 4))}
    tables["s"][2] = 0
    slides = {
        name: make_counts([str(i) for i in range(len(t))], GENES, t.astype(np.float32))
        for name, t in tables.items()
    }
    genes, mean, variance = target_moments(slides)
    pooled = np.concatenate([targets_from_counts(c, GENES).dense() for c in slides.values()]).astype(
        np.float64
    )
    assert genes == GENES
    np.testing.assert_allclose(mean, np.nanmean(pooled, axis=0), rtol=1e-5)
    np.testing.assert_allclose(variance, np.nanvar(pooled, axis=0), rtol=1e-4)


def test_panels_are_chosen_on_genes_that_all_training_slides_have() -> None:
    one = make_counts(("a", "b"), ("X", "Y", "Z"), np.array([[9, 0, 1], [0, 1, 1]], np.float32))
    two = make_counts(("a", "b"), ("Y", "X"), np.array([[1, 9], [2, 0]], np.float32))
    training = {"one": one, "two": two}
    assert set(choose_panel("all", training).genes) == {"X", "Y"}
    assert choose_panel("hvg:1", training).genes == ("X",)
    assert choose_panel("mean:2", training).slides == ("one", "two")
    with pytest.raises(PanelError, match="3 genes are requested; there are 2 to choose from"):
        choose_panel("hvg:3", training)
    for wrong in ("hvg:", "hvg:many", "mean:0"):
        with pytest.raises(PanelError, match="number of genes"):
            choose_panel(wrong, training)
    with pytest.raises(PanelError, match="no training slide"):
        choose_panel("all", {})


def test_a_panel_file_keeps_its_order_and_is_checked(tmp_path) -> None:
    counts = {"s": make_counts(("a",), GENES, np.ones((1, 4), np.float32))}
    file = tmp_path / "panel.txt"
    file.write_text("G3\n\nG0 \n")
    panel = choose_panel(str(file), counts)
    assert panel.genes == ("G3", "G0")
    assert panel.how == "file panel.txt"
    for text, part in (("", "lists no genes"), ("G1\nG1\n", "more than once"), ("G1\nQ\n", "1 of 2 genes")):
        file.write_text(text)
        with pytest.raises(PanelError, match=part):
            choose_panel(str(file), counts, exact=True)
    with pytest.raises(PanelError, match="no such file"):
        choose_panel(str(tmp_path / "no.txt"), counts)


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(CountsError, match="0 spots and 4 genes"):
        make_counts((), GENES, np.zeros((0, 4), np.float32))


@given(TABLES)
def test_a_spot_without_counts_is_zero_where_its_normalisation_says_so(table) -> None:
    table[1] = 0
    counts = make_counts(IDS, GENES, table)
    found = targets_from_counts(counts, ("G1", "absent"), LOG1P_COUNTS).dense()
    np.testing.assert_allclose(found[:, 0], np.log1p(table[:, 1]), rtol=1e-6)
    assert found[1, 0] == 0
    assert np.isnan(found[:, 1]).all()


def test_smoothed_targets_are_means_over_neighbours() -> None:
    grid = [(x, y) for y in range(4) for x in range(4)]
    table = np.random.default_rng(0).poisson(2.0, (16, 4)).astype(np.float32)
    table[3] = 0  # 0 in its neighbours' means, as in its own
    counts = make_counts([f"{x}x{y}" for x, y in grid], GENES, table)
    panel = ("G3", "absent", "G0")
    plain = targets_from_counts(counts, panel, LOG10_PANEL).dense()
    found = targets_from_counts(counts, panel, LOG10_PANEL_SMOOTHED, np.array(grid) * 200.0).dense()
    for row, (x, y) in enumerate(grid):
        around = [i for i, (a, b) in enumerate(grid) if max(abs(a - x), abs(b - y)) <= 1]
        np.testing.assert_allclose(found[row, [0, 2]], plain[around][:, [0, 2]].mean(axis=0), rtol=1e-5)
    assert np.isnan(found[:, 1]).all()


@pytest.mark.parametrize("normalisation", [LOG1P_COUNTS, LOG10_PANEL, LOG10_PANEL_SMOOTHED])
def test_a_spot_that_the_table_lacks_is_undefined_and_takes_no_part(normalisation: str) -> None:
    """An empty spot was measured; one without a row was not."""
    table = np.array([[4, 1], [0, 0], [2, 3]])
    counts = make_counts(["a", "empty", "c"], ["G1", "G2"], table).rows_of(["a", "empty", "absent", "c"])
    xy = np.array([[0.0, 0], [1, 0], [2, 0], [3, 0]])
    found = targets_from_counts(counts, ["G1", "G2"], normalisation, xy).dense()
    assert np.isnan(found[2]).all()
    assert np.isfinite(np.delete(found, 2, axis=0)).all()
    if normalisation == LOG10_PANEL_SMOOTHED:  # the last is too far away
        panel = targets_from_counts(counts, ["G1", "G2"], LOG10_PANEL).dense()
        np.testing.assert_allclose(found[0], panel[:2].mean(axis=0), rtol=1e-6)
        return
    alone = targets_from_counts(
        make_counts(["a", "empty", "c"], ["G1", "G2"], table), ["G1", "G2"], normalisation, xy[[0, 1, 3]]
    ).dense()
    np.testing.assert_allclose(found[[0, 1]], alone[[0, 1]])
