"""What holds for every reader: paths that are not its layout are refused in one sentence, and docs name it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mmap_st.data.readers import open_cohort
from mmap_st.data.readers.registry import READERS
from mmap_st.errors import CohortError

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
