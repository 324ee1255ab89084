"""What holds for every reader: paths that are not its layout are refused in one sentence, and docs name it."""

import ast
import gzip
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from mmap_st.data.cohort import Cohort, read_cohort, write_cohort
from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.data.readers.registry import READERS
from mmap_st.errors import CohortError
from mmap_st.files import absolute

sys.path.insert(0, str(Path(__file__).parents[1]))
import layouts

README = (Path(__file__).parents[3] / "data" / "README.md").read_text("utf-8")


def a_file(path: Path) -> Path:
    path.write_text("id,x,y\na,1,2\n")
    return path


def an_empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def a_folder_of_other_things(path: Path) -> Path:
    (path / "notes").mkdir(parents=True)
    (path / "notes" / "thesis.txt").write_text("not a slide")
    return path


def nothing(path: Path) -> Path:
    return path


PATHS = (a_file, an_empty_folder, a_folder_of_other_things, nothing)


@pytest.mark.parametrize("make", PATHS)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_not_its_layout_is_refused(reader: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "given")
    with pytest.raises(CohortError) as refused:
        open_cohort(f"{reader}:{path}")
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("reader", READERS)
def test_its_layout_is_shown(reader: str) -> None:
    assert f"\n## {reader}\n" in README, f"data/README.md needs a section on the layout of {reader}"


def test_no_path_is_taken_for_a_pattern() -> None:
    """polars takes ``run[1]`` for a pattern, and reads ``run1``, unless it is told not to."""
    root = Path(__file__).parents[3]
    calls = 0
    for folder in ("data", "extract", "prototypes", "head", "report", "workflows", "commands"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                if re.fullmatch(r"pl\.(read|scan)_\w+", ast.unparse(node.func)):
                    calls += 1
                    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert given.get("glob") == "False", f"{path}, line {node.lineno}"
    assert calls > 5


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_a_table_below_brackets_is_the_one_that_is_read(kind: str, tmp_path: Path) -> None:
    """With the folders ``run[1]`` and ``run1`` side by side, each is read where it is named."""
    for name, value in (("run1", 7), ("run[1]", 3)):
        folder = tmp_path / name
        folder.mkdir()
        spots = pl.DataFrame({"id": ["a", "b"], "x": [1.0, 2.0], "y": [1.0, 2.0]})
        counts = pl.DataFrame({"id": ["a", "b"], "G1": [value, value], "G2": [0, value]})
        for table, of in ((spots, "spots"), (counts, "counts")):
            file = folder / f"S[1]_{of}.{kind}"
            if kind == "parquet":
                table.write_parquet(file)
            else:
                text = table.write_csv().encode()
                file.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
    for name, value in (("run1", 7), ("run[1]", 3)):
        (slide,) = open_cohort(f"table:{tmp_path / name}").slides
        assert read_counts(slide).matrix.sum() == 3 * value
        write_cohort(Cohort((slide,), "here"), tmp_path / name / "cohort[1].csv")
        (again,) = read_cohort(tmp_path / name / "cohort[1].csv").slides
        assert read_counts(again).matrix.sum() == 3 * value


def test_a_cohort_keeps_the_paths_that_the_user_gave(tmp_path: Path) -> None:
    """Links are usual (Space Ranger, caches, workflows): files beside a link belong to it, not to its target."""
    blobs, sample, out = tmp_path / "blobs", tmp_path / "sample", tmp_path / "results"
    for folder in (blobs, sample, out):
        folder.mkdir()
    layouts.write_visium_hd(tmp_path / "real")
    bins = next((tmp_path / "real").rglob("square_*"))
    shutil.copytree(bins, sample / "square_008um", symlinks=True)
    for number, file in enumerate(sorted((sample / "square_008um" / "spatial").iterdir())):
        blob = blobs / f"{number:064x}"  # without a suffix, as in the cache of huggingface_hub
        file.rename(blob)
        file.symlink_to(blob)
    linked = tmp_path / "linked_out"
    linked.symlink_to(out)
    cohort = open_cohort(f"visium-hd:{sample / 'square_008um'}")
    write_cohort(cohort, linked / "cohort.csv")
    read = read_cohort(linked / "cohort.csv")
    before, after = cohort.slides[0], read.slides[0]
    assert after.spots is not None
    assert after.spots.name == before.spots.name
    spots, again = read_spots(before), read_spots(after)
    assert again.mpp == spots.mpp
    assert again.ids == spots.ids


def test_samples_that_are_links_are_named_by_the_link(tmp_path: Path) -> None:
    layouts.write_visium(tmp_path / "a1" / "sample")
    (tmp_path / "cohort").mkdir()
    for name in ("P1", "P2"):
        (tmp_path / "cohort" / name).symlink_to(tmp_path / "a1" / "sample" / "outs")
    assert open_cohort(f"visium:{tmp_path / 'cohort'}").names == ("P1", "P2")
    assert open_cohort(f"visium:{tmp_path / 'cohort' / 'P1'}").names == ("P1",)


def test_what_leads_up_from_a_link_leads_up_from_its_target(tmp_path: Path) -> None:
    (tmp_path / "deep" / "inner").mkdir(parents=True)
    (tmp_path / "deep" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "inner")
    assert absolute(tmp_path / "link" / ".." / "file").read_text() == "x"
    assert absolute(tmp_path / "link" / "file") == tmp_path / "link" / "file"


#: A file of each layout, and what was given: the folder above it, or the file.
SIGNS = {
    "xenium": ("experiment.xenium", "section/experiment.xenium"),
    "visium-hd": ("binned_outputs/square_008um/spatial/tissue_positions.parquet",),
    "visium": (
        "spatial/tissue_positions.csv",
        "outs/spatial/tissue_positions_list.csv",
        "A1/outs/spatial/tissue_positions.csv",
    ),
    "her2st": ("ST-cnts/B4.tsv.gz", "data/ST-cnts/B4.tsv.gz"),
    "hest": ("st/TENX1.h5ad",),
    "h5ad": ("S1.h5ad",),
    "st": ("GSM1_P2_ST_rep1_stdata.tsv.gz",),
    "table": ("S1_spots.csv", "S1_spots.tsv.gz", "S1_spots.parquet"),
    "images": ("S1.svs", "S1.ome.tif"),
}
PLACES = [(reader, name) for reader, names in SIGNS.items() for name in names]


@pytest.mark.parametrize(("reader", "name"), PLACES)
def test_data_given_as_a_cohort_is_told_its_reader(reader: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / "given" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\xff\xd8\x89")
    with pytest.raises(CohortError, match=rf"say which reader reads it: {reader}:{tmp_path}"):
        open_cohort(str(tmp_path / "given"))


@pytest.mark.parametrize("name", ["S1.svs", "S1.h5ad", "S1.jpg"])
def test_a_file_of_data_given_as_a_cohort_is_told_its_reader(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\xff\xd8\x89")
    with pytest.raises(CohortError, match=rf"say which reader reads it: (images|h5ad):{tmp_path / name}"):
        open_cohort(str(tmp_path / name))


@pytest.mark.parametrize("make", [an_empty_folder, a_folder_of_other_things])
def test_a_folder_given_as_a_cohort_is_told_the_readers(make: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"is a folder, not a cohort file; .*\(the readers are her2st"):
        open_cohort(str(make(tmp_path / "given")))


@pytest.mark.parametrize("name", ["S1.h5ad", "outs/spatial/tissue_positions.csv"])
def test_data_given_as_images_is_told_its_reader(name: str, tmp_path: Path) -> None:
    file = tmp_path / "given" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    given = file if name == "S1.h5ad" else tmp_path / "given"
    with pytest.raises(CohortError, match=rf"data for another reader: (h5ad|visium):{given}"):
        open_cohort(f"images:{given}")
