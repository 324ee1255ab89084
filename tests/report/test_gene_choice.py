"""`mmap report --genes`: names, ids and files, and what is said of genes that are on no panel."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import anndata
import pytest

from mmap_st.errors import RequestError
from mmap_st.head.runs.head_card import PanelCard, read_card
from mmap_st.report.gene_choice import GeneChoice

GENES = ("ERBB2", "FASN", "MT:CO1", "A,B")
IDS = tuple(f"ENSG{number:011d}" for number in range(1, 5))


class Card:
    def __init__(self, how: str = "hvg:4", ids: tuple[str, ...] | None = IDS) -> None:
        self.panel = PanelCard(GENES, ids, how, ())


def choice(*words: str, how: str = "hvg:4") -> GeneChoice:
    return GeneChoice(words, [Card(how)])  # type: ignore[list-item]


def test_names_ids_and_files_are_genes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text(f"FASN\n{IDS[0]}.4\n")
    Path("FASN").write_text("ERBB2\n")  # a gene comes before a file of its name
    assert choice("mine").of_slide("S", GENES) == ["FASN", "ERBB2"]
    assert choice("MT:CO1", "A,B", "FASN", "FASN").of_slide("S", GENES) == ["MT:CO1", "A,B", "FASN"]
    assert choice(f"{IDS[1]}.12", "FASN", IDS[0]).of_slide("S", GENES) == ["FASN", "ERBB2"]


@pytest.mark.parametrize(
    ("how", "advice"),
    [
        ("hvg:250", "hvg:250,SCD"),
        ("hvg:250 of the union", "hvg:250,SCD --gene-set union"),
        ("file markers.txt", "markers.txt,SCD"),
        ("hest:50, chosen on all slides, test included", "hest:50,SCD"),
        ("hvg:250,ERBB2", "hvg:250,ERBB2,SCD"),
    ],
)
def test_the_note_says_how_to_have_a_gene(how: str, advice: str) -> None:
    chosen = choice("SCD", "ERBB2", how=how)
    assert chosen.of_slide("S", GENES) == ["ERBB2"]
    assert chosen.notes == [f"SCD is not on the panel of this head ({how}); fit with --genes {advice}"]


def test_a_word_of_any_length_is_a_missing_gene() -> None:
    chosen = choice("X" * 5000, "FASN")
    assert chosen.of_slide("S", GENES) == ["FASN"]
    assert chosen.missing == {"X" * 5000: ["S"]}


def test_notes_are_one_for_the_genes_that_the_same_slides_lack() -> None:
    chosen = choice("SCD", "GNAS", "erbb2", "FASN")
    chosen.of_slide("S", GENES)
    chosen.of_slide("T", GENES[:1])
    assert chosen.notes == [
        "SCD, GNAS, erbb2 (did you mean ERBB2?) are not on the panel of this head (hvg:4); fit with --genes"
        " hvg:4,SCD,GNAS",
        "FASN is not on the panel of this head (hvg:4) (slides: T); fit with --genes hvg:4,FASN",
    ]
    without = GeneChoice(["SCD"])
    without.of_slide("S", GENES)
    assert without.notes == ["SCD is not on the panel of the head; fit a head with --genes hvg:250,SCD"]


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("hvg:10", "draws genes that are named"),
        ("all", "draws genes"),
        ("no.txt", "no such file"),
        ("x:1", "rule"),
    ],
)
def test_rules_and_files_that_are_not_there_are_refused(word: str, part: str) -> None:
    with pytest.raises(RequestError, match=part):
        choice(word).of_slide("S", GENES)


def test_the_command_draws_what_is_there(tiny, mmap: Callable, tmp_path: Path) -> None:
    gene = read_card(tiny.run).panel.genes[0]
    out = tmp_path / "figures"
    done = mmap("report", tiny.run, "--out", out, "--genes", f"{gene},NOTHERE")
    assert done.returncode == 0, done.stderr
    assert "NOTHERE is not on the panel of this head (mean:10); fit with --genes mean:10,NOTHERE" in " ".join(
        done.stderr.split()
    )
    assert (out / "B1_maps.png").is_file()
    shutil.rmtree(out)
    for words in ("NOTHERE", "NOTHERE,mean:3", gene.lower()):
        done = mmap("report", tiny.run, "--out", out, "--genes", words)
        assert done.returncode == 2, done
        assert len(done.stderr.splitlines()) == 1
        assert not out.exists()
    assert f"did you mean {gene}?" in done.stderr
    predictions = shutil.copytree(tiny.run / "predictions", tmp_path / "predictions")
    done = mmap("report", predictions, "--out", out, "--genes", f"NOTHERE,{gene}")
    assert done.returncode == 0, done.stderr
    assert "NOTHERE is not on the panel of the head" in done.stderr
    # Predictions know the ids of their genes themselves.
    table = anndata.read_h5ad(predictions / "B1.h5ad")
    table.var["gene_ids"] = [f"ENSG{number:011d}" for number in range(table.n_vars)]
    table.write_h5ad(predictions / "B1.h5ad")
    done = mmap("report", predictions, "--out", out, "--genes", "ENSG00000000000.7")
    assert (done.returncode, done.stderr) == (0, "")
