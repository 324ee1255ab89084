"""Gene sets: read from .gmt files, found on a panel, and scored on a slide's predictions."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest

import mmap_st as mm
from mmap_st.errors import MmapWarning, PanelError
from mmap_st.head.runs.prediction_files import write_prediction
from mmap_st.head.scoring import gene_sets
from mmap_st.head.scoring.gene_sets import gene_sets_on_panel, read_gmt, z_scores

GENES = ("ERBB2", "FASN", "SCD", "GNAS")
IDS = ("ENSG00000000001", "", "ENSG00000000003", "ENSG00000000004")


def table(values: np.ndarray) -> anndata.AnnData:
    return anndata.AnnData(X=values.astype(np.float32))


# Files that other tests left open are collected whenever memory is.
@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")
def test_thousands_of_gene_sets_are_written_or_refused(tmp_path: Path) -> None:
    most = gene_sets._MOST_SETS
    sets = {f"GOBP_A_PROCESS_WITH_A_LONG_NAME_{i}": GENES[:2] for i in range(most)}
    scored = table(np.arange(12.0).reshape(3, 4))
    scored.obs_names = ["a", "b", "c"]
    for column in ("valid", "in_bounds", "array_row", "array_col", "tissue", "on_tissue", "distance"):
        scored.obs[column] = 1.0
    gene_sets_on_panel(sets, GENES).add_scores(scored)
    write_prediction(tmp_path / "a.h5ad", scored)
    again = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert again.obs.shape == (3, most + 7)
    with pytest.raises(PanelError, match=r"4,001 gene sets would be scored.* 4,000 at most"):
        gene_sets_on_panel({**sets, "ONE MORE": GENES[:2], "TOO FEW": GENES[:1]}, GENES)


@pytest.mark.parametrize("form", ["plain", "gzip", "crlf"])
def test_a_gmt_file_is_read(form: str, tmp_path: Path) -> None:
    text = "LIPID\thttp://x\tFASN\tSCD\tFASN\t\n\nHER2 \t\tERBB2\tGNAS\nNONE\tna\n"
    data = text.replace("\n", "\r\n").encode() if form == "crlf" else text.encode()
    path = tmp_path / "sets.gmt"
    path.write_bytes(gzip.compress(data) if form == "gzip" else data)
    assert read_gmt(path) == {"LIPID": ("FASN", "SCD", "FASN"), "HER2": ("ERBB2", "GNAS"), "NONE": ()}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "A\tb\tERBB2\nERBB2 FASN\n",
            "line 2: a gene set is its name, a description and its genes, with tabs",
        ),
        ("\tb\tERBB2\n", "line 1"),
        ("A\tb\tX\tY\nA\tc\tX\tY\n", "more than once: A"),
        ("A/B\tb\tX\tY\nA_B\tc\tX\tY\n", "would have one column: A/B, A_B"),
        ("\n", "has no gene sets"),
        ("A\x07\tb\tX\n", "cannot be the name of a column"),
    ],
)
def test_files_that_are_no_gene_sets(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "sets.gmt").write_text(text)
    with pytest.raises(PanelError, match=said):
        read_gmt(tmp_path / "sets.gmt")


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(PanelError, match="no such file"):
        read_gmt(tmp_path / "gone.gmt")
    (tmp_path / "sets.gmt").write_bytes(b"\x1f\x8bnot packed")
    with pytest.raises(PanelError, match=r"sets\.gmt"):
        read_gmt(tmp_path / "sets.gmt")
    with pytest.raises(PanelError, match="are a text"):
        gene_sets_on_panel({"A": "ERBB2"}, GENES)


def test_genes_are_found_by_name_and_id_and_sets_of_one_gene_are_left_out() -> None:
    sets = {
        "both": ["FASN", "ENSG00000000003.7", "QQQQ"],
        "one": ["ERBB2", "ENSG00000000001", "QQQQ"],
        "a/b": ["ERBB2", "GNAS"],
        "lower": ["erbb2", "fasn"],
    }
    found = gene_sets_on_panel(sets, GENES, IDS)
    assert {name: columns.tolist() for name, columns in found.columns.items()} == {
        "both": [1, 2],
        "a_b": [0, 3],
    }
    assert found.notes == ("2 of 4 gene sets have fewer than 2 genes on the panel and no score: one, lower",)
    assert gene_sets_on_panel({"x": GENES}, GENES).notes == ()
    with pytest.raises(PanelError, match="1 of 1 gene set has fewer than 2 genes on the panel, so that"):
        gene_sets_on_panel({"one": ["ERBB2"]}, GENES)


def test_a_score_is_the_mean_of_scores_within_the_slide() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 4)) * [1, 10, 0.1, 3] + [0, 5, 100, 2]
    values[[3, 17]] = np.nan
    predicted = table(values)
    gene_sets_on_panel({"a": ["SCD", "FASN"], "all": GENES}, GENES).add_scores(predicted)
    valid = ~np.isnan(values[:, 0])
    kept = values[valid].astype(np.float32).astype(np.float64)
    expected = (kept - kept.mean(axis=0)) / kept.std(axis=0)
    for name, columns in (("a", [1, 2]), ("all", [0, 1, 2, 3])):
        score = predicted.obs[f"score_{name}"].to_numpy()
        assert score.dtype == np.float32
        np.testing.assert_array_equal(np.isnan(score), ~valid)
        np.testing.assert_allclose(score[valid], expected[:, columns].mean(axis=1), atol=1e-4)
        assert abs(score[valid].mean()) < 1e-5


@pytest.mark.parametrize("level", [0.0, 0.1, 12345.678])
def test_genes_that_do_not_vary_count_nothing(level: float) -> None:
    values = np.full((1000, 3), level, np.float32)
    values[:, 1] = np.arange(1000)
    found = z_scores(values)
    assert not found[:, [0, 2]].any()
    assert found[:, 1].std() == pytest.approx(1)


def test_slides_without_a_valid_spot_have_no_score() -> None:
    predicted = table(np.full((3, 4), np.nan))
    gene_sets_on_panel({"all": GENES}, GENES).add_scores(predicted)
    assert predicted.obs["score_all"].isna().all()


def test_the_command_and_python(tiny, mmap: Callable, tmp_path: Path) -> None:
    run = mm.load_head(tiny.run)
    first, second, third = run.panel[:3]
    sets = tmp_path / "sets.gmt"
    sets.write_text(f"mine/own\tx\t{first}\t{second}\nfew\tx\t{third}\tQQQQ\n")
    words = ("predict", tiny.run, tiny.store, "--slides", "B1", "--out", tmp_path / "out", "--gene-sets")
    done = mmap(*words, sets)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 gene sets has fewer than 2 genes on the panel and no score: few" in done.stderr
    written = anndata.read_h5ad(tmp_path / "out" / "B1.h5ad")
    assert "score_few" not in written.obs
    expected = z_scores(np.asarray(written[:, [first, second]].X)).mean(axis=1)
    np.testing.assert_allclose(written.obs["score_mine_own"], expected, atol=1e-6)
    with pytest.warns(MmapWarning, match="no score: few"):
        found = run.predict(tiny.store, "B1", gene_sets=sets, progress=False)
    np.testing.assert_array_equal(found.obs["score_mine_own"], written.obs["score_mine_own"])
    given = {"mine/own": [first, second]}
    report = mm.predict(run, tiny.store, tmp_path / "again", slides="B1", gene_sets=given, progress=False)
    assert report.notes == ()
    without = mmap(*words[:4], "B1", "--out", tmp_path / "plain")
    assert without.returncode == 0
    assert not [
        name for name in anndata.read_h5ad(tmp_path / "plain" / "B1.h5ad").obs if name.startswith("score_")
    ]
    sets.write_text("few\tx\tQQQQ\n")
    refused = mmap(*words[:-2], tmp_path / "none", "--gene-sets", sets)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        ({1: ["A", "B"]}, "1 is no name of a set"),
        ({"s": "AB"}, "the genes of s are no list"),
        ({"s": 3}, "the genes of s are no list"),
        ({"s": ["A", 2.5]}, "2.5 in s is no name of a gene"),
        ([["A", "B"]], "gene_sets is list"),
    ],
)
def test_sets_that_are_no_names_of_genes_are_one_sentence(sets: object, sentence: str, tiny) -> None:
    with pytest.raises(PanelError, match=sentence):
        mm.load_head(tiny.run).predict(tiny.store, "B1", gene_sets=sets, progress=False)  # type: ignore[arg-type]


def test_any_list_of_names_will_do(tiny) -> None:
    run = mm.load_head(tiny.run)
    genes = run.panel[:3]
    as_list, as_array = (
        run.predict(tiny.store, "B1", gene_sets={"s": of}, progress=False).obs["score_s"]
        for of in (list(genes), np.array(genes))
    )
    assert np.array_equal(as_list, as_array)
