"""Panels of several parts: rules, files, and genes by name or id."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mmap_st.data.counts import Counts, make_counts
from mmap_st.data.panel import choose_panel, missing_genes
from mmap_st.errors import PanelError

GENES = ("ERBB2", "FASN", "SCD", "GNAS", "MT:CO1", "A,B", "ACTG1", "KRT19")
IDS = tuple(f"ENSG{number:011d}" for number in range(1, len(GENES) + 1))
SPOTS = 30


def table(genes: tuple[str, ...] = GENES, ids: tuple[str, ...] | None = IDS, seed: int = 0) -> Counts:
    rng = np.random.default_rng(seed)
    level = np.arange(1, len(genes) + 1) * 4
    values = rng.poisson(level, (SPOTS, len(genes))).astype(np.float32)
    return make_counts([f"{i}x0" for i in range(SPOTS)], genes, values, gene_ids=ids)


TRAINING = {"A": table(), "B": table(seed=1)}
XY = {name: np.stack([np.arange(SPOTS), np.zeros(SPOTS)], axis=1).astype(np.float64) for name in TRAINING}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def panel(text: str, **others: object) -> tuple[str, ...]:
    return choose_panel(text, TRAINING, xy=XY, **others).genes  # type: ignore[arg-type]


def write(name: str, *lines: str) -> None:
    Path(name).write_text("".join(f"{line}\n" for line in lines), "utf-8")


@pytest.mark.parametrize("rules", [("hvg:2",), ("mean:3", "svg:2"), ("hvg:3", "hvg:2"), ("all",)])
def test_named_genes_follow_what_rules_choose(rules: tuple[str, ...]) -> None:
    chosen = [gene for rule in rules for gene in panel(rule)]
    wanted = tuple(dict.fromkeys([*chosen, "ERBB2", "FASN"]))
    found = choose_panel(",".join((*rules, "ERBB2", "FASN")), TRAINING, xy=XY)
    assert found.genes == wanted
    assert found.how == ",".join((*rules, "ERBB2", "FASN"))
    assert found.slides == ("A", "B")
    assert found.gene_ids is not None
    assert found.gene_ids == tuple(IDS[GENES.index(gene)] for gene in found.genes)


def test_parts_keep_their_order_and_blanks_do_not_matter() -> None:
    assert panel("SCD, hvg:1 ,ERBB2,,SCD") == tuple(dict.fromkeys(["SCD", *panel("hvg:1"), "ERBB2"]))
    named = choose_panel("SCD,ERBB2", TRAINING)
    assert named.genes == ("SCD", "ERBB2")
    assert named.slides == ()  # nothing was selected on them


@pytest.mark.parametrize("name", ["markers.txt", "markers", "my markers.v2"])
def test_files_are_parts_whatever_their_ending(name: str, folder: Path) -> None:
    write(name, "FASN", "A,B", "MT:CO1", IDS[0])
    assert panel(f"SCD,{name}") == ("SCD", "FASN", "A,B", "MT:CO1", "ERBB2")
    found = choose_panel(f"SCD,{folder / name}", TRAINING)
    assert found.how == f"SCD,{name}"  # where it lies is nobody's business
    assert panel(name) == ("FASN", "A,B", "MT:CO1", "ERBB2")
    assert choose_panel(name, TRAINING).how == f"file {name}"


def test_a_file_with_a_comma_in_its_name_is_one_file() -> None:
    write("ERBB2,FASN", "SCD")
    assert panel("ERBB2,FASN") == ("SCD",)


@pytest.mark.parametrize("suffix", ["", ".12", ".3_PAR_Y"])
def test_ids_are_names_too(suffix: str) -> None:
    assert panel(f"{IDS[1]}{suffix},{IDS[0]},FASN") == ("FASN", "ERBB2")
    write("ids.txt", f"{IDS[1]}{suffix}", "SCD")
    assert panel("ids.txt") == ("FASN", "SCD")
    by_id = {"A": table(IDS, None)}
    assert choose_panel(f"{IDS[1]}{suffix}", by_id).genes == (IDS[1],)


def test_an_id_of_several_genes_is_said_to_be_so() -> None:
    training = {"A": table(ids=(IDS[0], IDS[0], *IDS[2:]))}
    (note,) = missing_genes(f"SCD,{IDS[0]}.5", training)
    assert (
        note
        == f"--genes: {IDS[0]}.5 is the id of ERBB2 and FASN, so not on the panel; give one of these names"
    )
    assert choose_panel(f"SCD,{IDS[0]}.5", training).genes == ("SCD",)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_gene_in_a_list_is_not_a_file_of_its_name(kind: str) -> None:
    if kind == "file":
        write("ERBB2", "GNAS")
    else:
        Path("ERBB2").mkdir()
    assert panel("FASN,ERBB2") == ("FASN", "ERBB2")
    assert panel("FASN,./ERBB2" if kind == "file" else "FASN,ERBB2")[1] == (
        "GNAS" if kind == "file" else "ERBB2"
    )
    # Alone, a path is that of a file, as ever.
    assert panel("ERBB2") == (("GNAS",) if kind == "file" else ("ERBB2",))
    notes = missing_genes("FASN,ERBB2", TRAINING) + missing_genes("ERBB2", TRAINING)
    assert notes == (
        [
            "--genes: ERBB2 is a gene and a file here: the gene is on the panel",
            "--genes: ERBB2 is a gene and a file here: the genes of the file are on the panel",
        ]
        if kind == "file"
        else []
    )


def test_rules_are_rules_where_files_have_their_names() -> None:
    write("all", "SCD")
    assert panel("all") == GENES
    assert panel("hvg:1,all") == tuple(dict.fromkeys([*panel("hvg:1"), *GENES]))


@pytest.mark.parametrize("listed", ["hvg:2,{}", "SCD,{}", "{}"])
def test_missing_genes_are_left_out_with_a_note(listed: str) -> None:
    write("markers.txt", "FASN", "QQQQ", "erbb2", "FASM")
    for text in (listed.format("markers.txt"), listed.format("FASN,QQQQ,erbb2,FASM")):
        (note,) = missing_genes(text, TRAINING)
        of = 5 if "SCD" in text else 4
        assert note == (
            f"--genes: 3 of {of} genes are on no training slide, so not on the panel: QQQQ, erbb2 (did you"
            " mean ERBB2?), FASM (did you mean FASN?)"
        )
        found = panel(text)
        assert "FASN" in found
        assert set(found) <= set(GENES)


@pytest.mark.parametrize("text", ["QQQQ", "QQQQ,erbb2", "markers.txt"])
def test_a_panel_of_missing_genes_alone_is_refused(text: str) -> None:
    write("markers.txt", "QQQQ", "erbb2")
    with pytest.raises(
        PanelError, match=r"on no training slide, so not on the panel: QQQQ.*check the gene names"
    ):
        panel(text)


@pytest.mark.parametrize("text", ["hvg:2,QQQQ", "FASN,QQQQ", "markers.txt"])
def test_a_panel_that_must_be_exact_lacks_nothing(text: str) -> None:
    write("markers.txt", "FASN", "QQQQ")
    with pytest.raises(PanelError, match=r"QQQQ; this protocol takes a panel as it is named"):
        panel(text, exact=True)
    assert panel("hvg:2,FASN", exact=True) == panel("hvg:2,FASN")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("nothere.txt", "no such file"),
        ("ERBB2,lists/nothere", "lists/nothere: no such file"),
        ("markers", r"there is no such file, and .* on no training slide"),
        ("hgv:20,ERBB2", r"no rule 'hgv' \(did you mean hvg"),
        ("HVG:20", r"no rule 'HVG' \(did you mean hvg\?\)"),
        ("MT:CO1", r"no rule 'MT'.*can be given in a file"),
        ("ALL,ERBB2", "did you mean all"),
        ("hvg", "did you mean hvg:250"),
        ("hvg:0,ERBB2", "hvg:0: give the number of genes"),
        ("hvg:99,ERBB2", "99 genes are requested"),
        (" , ", "names nothing"),
        ("", "names nothing"),
    ],
)
def test_what_is_no_gene_is_refused_in_one_sentence(text: str, part: str) -> None:
    with pytest.raises(PanelError, match=part):
        panel(text)


def test_named_genes_are_taken_as_the_gene_set_says() -> None:
    training = {"A": table(), "B": table(GENES[:-1], IDS[:-1])}
    for word in ("KRT19", f"{IDS[-1]}.1"):
        text = f"hvg:2,{word},SCD"
        assert "KRT19" not in choose_panel(text, training).genes
        (note,) = missing_genes(text, training)
        assert note == (
            f"--genes: 1 of 2 genes is not on every training slide, so not on the panel: {word} (--gene-set"
            " union takes it)"
        )
        union = choose_panel(text, training, gene_set="union")
        assert "KRT19" in union.genes
        assert union.how == f"{text} of the union"
        assert missing_genes(text, training, "union") == []
    with pytest.raises(PanelError, match="--gene-set union takes it"):
        choose_panel("KRT19", training)
    write("markers.txt", "KRT19")
    assert choose_panel("markers.txt", training).genes == ("KRT19",)  # as ever
    with pytest.raises(PanelError, match="--gene-set both"):
        choose_panel("KRT19", training, gene_set="both")


def test_names_of_another_kind_are_pointed_out() -> None:
    (note,) = missing_genes("all,FASN", {"A": table(IDS, None)})
    assert note.endswith("FASN; the tables name genes by Ensembl id")
    (note,) = missing_genes(f"all,{IDS[0]}", {"A": table(ids=None)})
    assert note.endswith(f"{IDS[0]}; the tables have no ids of genes")


def test_a_pipe_is_refused_and_not_read() -> None:
    os.mkfifo("genes")
    with pytest.raises(PanelError, match="is a pipe or a device"):
        panel("ERBB2,genes")
