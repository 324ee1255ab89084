import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmap_st.data.counts import (
    canonical_gene,
    gene_naming,
    harmonise_genes,
    make_counts,
    named_by_id,
    shared_genes,
    union_of_genes,
)
from mmap_st.data.panel import choose_panel, target_moments
from mmap_st.data.targets import AS_GIVEN, LOG1P_10K, normalisation_of, targets_from_counts
from mmap_st.errors import CountsError, NormalisationError, PanelError

NAMES = st.lists(st.sampled_from("ABCDEFGH"), unique=True, min_size=1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ENSG00000141736.14", "ENSG00000141736"),
        ("ENSMUSG00000064372.1", "ENSMUSG00000064372"),
        ("ENSG00000002586.20_PAR_Y", "ENSG00000002586"),
        (" ERBB2 ", "ERBB2"),
        ("FO538757.1", "FO538757.1"),  # a clone's name: its number is part of it
        ("RP11-34P13.7", "RP11-34P13.7"),
        ("HLA-A", "HLA-A"),
    ],
)
def test_versions_of_ensembl_ids_are_left_out_and_nothing_else(name: str, expected: str) -> None:
    assert canonical_gene(name) == expected


def test_columns_that_differ_in_version_alone_are_added_up_and_counted() -> None:
    names = ("ENSG00000000001.1", "X", "ENSG00000000001.2")
    counts = make_counts(("a",), names, np.array([[1, 2, 4]], np.float32))
    assert counts.genes == ("ENSG00000000001", "X")
    assert counts.matrix.toarray().tolist() == [[5, 2]]
    assert counts.merged_genes == 1


def test_log_normalised_columns_of_one_gene_cannot_be_added_up() -> None:
    with pytest.raises(CountsError, match="cannot be added up"):
        make_counts(("a",), ("X", "X"), np.array([[0.5, 0.2]], np.float32), kind="lognorm")


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_genes_in_common_and_in_any(tables) -> None:
    assert set(shared_genes(tables)) == set.intersection(*map(set, tables))
    assert set(union_of_genes(tables)) == set.union(*map(set, tables))
    assert len(union_of_genes(tables)) == len(set(union_of_genes(tables)))


IDS = ("ENSG00000000001", "ENSG00000000002", "")


def test_slides_named_in_two_ways_are_brought_to_ids() -> None:
    symbols = make_counts(("a",), ("A", "B", "C"), np.array([[1, 2, 3]], np.float32), gene_ids=IDS)
    ids = make_counts(("b",), IDS[:2], np.array([[4, 5]], np.float32))
    both = harmonise_genes({"one": symbols, "two": ids})
    assert both["one"].genes == both["two"].genes == IDS[:2]
    assert both["one"].matrix.toarray().tolist() == [[1, 2]]
    same = harmonise_genes({"one": symbols})
    assert same["one"] is symbols
    assert gene_naming(named_by_id(symbols).genes) == "Ensembl ids"


def test_symbols_without_ids_beside_ids_alone_are_refused() -> None:
    symbols = make_counts(("a",), ("A", "B"), np.array([[1, 2]], np.float32))
    ids = make_counts(("b",), IDS[:2], np.array([[4, 5]], np.float32))
    with pytest.raises(PanelError, match=r"slides two name genes by Ensembl id, and one by symbol"):
        harmonise_genes({"one": symbols, "two": ids})


def test_a_panel_of_the_union_takes_each_gene_from_the_slides_that_have_it() -> None:
    one = make_counts(("a", "b"), ("X", "Y"), np.array([[9, 1], [0, 1]], np.float32))
    two = make_counts(("c", "d"), ("Y", "Z"), np.array([[2, 7], [3, 0]], np.float32))
    training = {"one": one, "two": two}
    assert choose_panel("all", training).genes == ("Y",)
    union = choose_panel("all", training, gene_set="union")
    assert union.genes == ("X", "Y", "Z")
    assert union.how == "all of the union"
    genes, mean, variance = target_moments(training, gene_set="union")
    expected = targets_from_counts(one, ("X",)).dense()[:, 0]
    assert mean[genes.index("X")] == pytest.approx(expected.mean(), rel=1e-5)
    assert variance[genes.index("X")] == pytest.approx(expected.var(), rel=1e-5)
    with pytest.raises(PanelError, match="--gene-set both"):
        choose_panel("all", training, gene_set="both")


def test_a_panel_knows_the_ids_beside_its_names() -> None:
    counts = make_counts(
        ("a", "b"), ("A", "B", "C"), np.array([[1, 2, 3], [3, 1, 0]], np.float32), gene_ids=IDS
    )
    assert choose_panel("all", {"one": counts}).gene_ids == IDS
    plain = make_counts(("a", "b"), ("A", "B"), np.array([[1, 2], [3, 1]], np.float32))
    assert choose_panel("all", {"one": plain}).gene_ids is None


def test_log_normalised_values_are_targets_as_they_are_and_do_not_mix_with_counts() -> None:
    values = np.array([[0.5, 2.5], [1.25, 0.0], [0.0, 0.0]], np.float32)
    lognorm = make_counts(("a", "b", "c"), ("A", "B"), values, kind="lognorm")
    counts = make_counts(("a",), ("A", "B"), np.array([[1, 2]], np.float32))
    assert normalisation_of({"one": lognorm}) == AS_GIVEN
    assert normalisation_of({"two": counts}) == LOG1P_10K
    found = targets_from_counts(lognorm, ("B", "A"), AS_GIVEN).dense()
    np.testing.assert_array_equal(found[:2], values[:2, ::-1])
    assert np.isnan(found[2]).all()  # nothing was measured there
    with pytest.raises(NormalisationError, match=r"1 of 2 slides holds log-normalised values \(one\)"):
        normalisation_of({"one": lognorm, "two": counts})
