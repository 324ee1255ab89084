"""Folders of 10x with each of the three files zipped or not."""

import gzip
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.errors import CountsError

sys.path.insert(0, str(Path(__file__).parents[1]))
import layouts

NAMES = ("matrix.mtx", "features.tsv", "barcodes.tsv")


def folder_of(root: Path) -> Path:
    layouts.write_visium(root / "S1", matrix="mtx")
    return root / "S1" / "outs" / "filtered_feature_bc_matrix"


def unzip(path: Path, *, keep: bool = False) -> Path:
    plain = path.with_suffix("")
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    if not keep:
        path.unlink()
    return plain


@pytest.mark.parametrize("zipped", product([False, True], repeat=3))
def test_files_may_be_zipped_or_not(zipped: tuple[bool, ...], tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    row = open_cohort(f"visium:{tmp_path}")["S1"]
    before, spots = read_counts(row), read_spots(row)
    for name, stays in zip(NAMES, zipped, strict=True):
        if not stays:
            unzip(folder / f"{name}.gz")
    after = read_counts(row)
    assert (after.ids, after.genes, after.gene_ids) == (before.ids, before.genes, layouts.GENE_IDS)
    np.testing.assert_array_equal(after.matrix.toarray(), before.matrix.toarray())
    assert read_spots(row).ids == spots.ids == after.ids


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_of_one_file(name: str, tmp_path: Path) -> None:
    plain = unzip(folder_of(tmp_path) / f"{name}.gz", keep=True)
    row = open_cohort(f"visium:{tmp_path}")["S1"]
    assert read_counts(row).genes == layouts.GENES
    plain.write_text(plain.read_text() + "\n")
    with pytest.raises(CountsError, match=rf"{name} and {name}.gz, and they differ; keep one"):
        read_counts(row)


def test_old_names_and_antibodies(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    row = open_cohort(f"visium:{tmp_path}")["S1"]
    text = unzip(folder / "features.tsv.gz").read_text()
    (folder / "features.tsv").unlink()
    (folder / "genes.tsv").write_text("".join(line.rsplit("\t", 1)[0] + "\n" for line in text.splitlines()))
    assert read_counts(row).genes == layouts.GENES
    (folder / "genes.tsv").unlink()
    last = text.rstrip().rpartition("\t")[0] + "\tAntibody Capture\n"
    (folder / "features.tsv").write_text(last)
    table = read_counts(row)
    assert table.genes == layouts.GENES[:-1]
    assert table.notes == ("features that are not genes (Antibody Capture), left out: 1",)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_missing_or_of_another_sample(name: str, tmp_path: Path) -> None:
    path = folder_of(tmp_path) / f"{name}.gz"
    row = open_cohort(f"visium:{tmp_path}")["S1"]
    lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    if name != "matrix.mtx":
        path.write_bytes(gzip.compress("".join(lines[:-1]).encode()))
        with pytest.raises(CountsError, match="use the three files of one sample"):
            read_counts(row)
    path.unlink()
    with pytest.raises(CountsError, match=f"has no {name}.gz"):
        read_counts(row)
