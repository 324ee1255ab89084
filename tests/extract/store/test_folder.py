"""Links, pipes and devices inside a store lead nowhere: nothing outside it is read, written or removed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mmap_st.errors import StoreError
from mmap_st.extract.store.reader import FeatureStore, is_nonempty
from mmap_st.extract.store.storage.folder import StoreFolder, drafts_below, drafts_in
from mmap_st.extract.store.writing.journal import journal_path
from mmap_st.extract.store.writing.lock import slide_lock

Command = Callable[..., subprocess.CompletedProcess[str]]
DRAFT = f"zarr.{'0' * 32}.partial"
ENCODER = "efficientnet-lite0"


@pytest.fixture
def copied(tiny, tmp_path: Path) -> Path:
    path = tmp_path / "copied.zarr"
    shutil.copytree(tiny.store, path)
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Somebody's folder, which no command may touch."""
    folder = tmp_path / "victim"
    (folder / "thesis").mkdir(parents=True)
    (folder / DRAFT).write_text("mine")
    (folder / "thesis" / DRAFT).write_text("mine")
    (folder / "notes.partial").write_text("mine")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def replace_by(path: Path, make: Callable[[Path], None]) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


#: Parts of a store, from the folder of a slide down to a chunk.
PARTS = ("B1", "B1/spots", f"B1/{ENCODER}", f"B1/{ENCODER}/0.5000", f"B1/{ENCODER}/0.5000/embedding",
         f"B1/{ENCODER}/0.5000/embedding/c", f"B1/{ENCODER}/0.5000/embedding/zarr.json")  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_link_anywhere_in_a_store_is_refused_and_leads_nowhere(
    part: str, copied: Path, tiny, victim: Path, mmap: Command, tmp_path: Path
) -> None:
    assert (copied / part).exists(), part
    replace_by(copied / part, lambda path: path.symlink_to(victim))
    before = contents(victim)
    fit = (
        "fit-head",
        f"her2st:{tiny.her2st}",
        copied,
        "--encoder",
        ENCODER,
        "--head",
        "mean",
        "--genes",
        "mean:5",
    )
    for words in (
        ("info", copied),
        ("extract", f"her2st:{tiny.her2st}", copied, "--encoder", ENCODER, "--mpp", "0.5,1"),
        ("predict", tiny.run, copied, "--out", tmp_path / "out"),
        ("prototypes", copied, "--encoder", ENCODER),
        (*fit, "--test", "slide=C1", "--out", tmp_path / "run"),
    ):
        shown = mmap(*words)
        said = shown.stdout + shown.stderr
        assert shown.returncode in (0, 1, 2), said
        assert "Traceback" not in said
        assert shown.returncode == 0 or "is a link" in said or "B1" in said, (words, said)
        assert contents(victim) == before, words


def test_a_pipe_in_place_of_a_chunk_is_not_waited_for(copied: Path) -> None:
    folder = copied / "B1" / ENCODER / "0.5000" / "embedding" / "c"
    chunk = next(file for file in folder.rglob("*") if file.is_file())
    replace_by(chunk, os.mkfifo)
    with pytest.raises(StoreError, match="neither a file nor a folder"):
        FeatureStore(copied)["B1"].embedding(ENCODER, mpp=0.5)


def test_a_store_may_be_a_link_itself(copied: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.zarr"
    link.symlink_to(copied)
    assert FeatureStore(link)["B1"].embedding(ENCODER, mpp=0.5).size
    with slide_lock(link, "B1"):
        pass


def test_journals_and_locks_are_no_way_out(copied: Path, victim: Path) -> None:
    before = contents(victim)
    for name in ("journals", "locks"):
        folder = copied.with_name(f"{copied.name}.{name}")
        folder.mkdir(exist_ok=True)
        (folder / "B1").symlink_to(victim)
        (folder / "B1.holder.json").symlink_to(victim / "notes.partial")
    with pytest.raises(StoreError, match="is a link"):
        journal_path(copied, "B1", ENCODER, "0.5000")
    with pytest.raises(StoreError, match="is a link"), slide_lock(copied, "B1"):
        pass
    assert contents(victim) == before


def test_only_drafts_of_zarr_by_exact_name_are_cleared(victim: Path, tmp_path: Path) -> None:
    assert {file.relative_to(victim) for file in drafts_below(victim)} == {
        Path(DRAFT),
        Path("thesis") / DRAFT,
    }
    link = tmp_path / "link"
    link.symlink_to(victim)
    assert list(drafts_below(link)) == []
    (tmp_path / "holder").mkdir()
    (tmp_path / "holder" / "inner").symlink_to(victim)
    assert list(drafts_below(tmp_path / "holder")) == []


@pytest.mark.parametrize(
    "looks",
    [
        is_nonempty,
        lambda folder: list(drafts_in(folder)),
        lambda folder: list(drafts_below(folder)),
        FeatureStore.create,
    ],
    ids=["is_nonempty", "drafts_in", "drafts_below", "create"],
)
def test_a_draft_may_go_while_its_folder_is_looked_at(
    looks: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another job gives its draft the file's own name between our reading the folder and our asking what it is.
    folder = tmp_path / "f.zarr"
    folder.mkdir()
    ask = os.lstat

    def gone(path: Path) -> os.stat_result:
        if Path(path).name == DRAFT:
            Path(path).unlink(missing_ok=True)
        return ask(path)

    (folder / DRAFT).touch()
    monkeypatch.setattr(os, "lstat", gone)
    looks(folder)
    assert not (folder / DRAFT).exists()


@pytest.mark.parametrize("way", ["get_sync", "set_sync", "delete_sync"])
def test_every_way_to_a_key_is_checked(way: str, victim: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "link").symlink_to(victim)
    store = StoreFolder(tmp_path / "s")
    more = (None,) if way == "set_sync" else ()
    with pytest.raises(StoreError, match="is a link"):
        getattr(store, way)("link/notes.partial", *more)
    assert "notes.partial" in contents(victim)
