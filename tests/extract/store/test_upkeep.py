"""What no one needs is removed from a store, and nothing else."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from mmap_st.errors import StoreError
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.store.upkeep.leftovers import UpkeepReport, remove_leftovers
from mmap_st.extract.store.upkeep.packing import pack_into
from mmap_st.extract.store.writing.journal import Journal, journal_path
from mmap_st.extract.store.writing.lock import slide_lock
from mmap_st.files import InUseError, file_lock
from mmap_st.prototypes.stored import build_all
from tests.extract.store.stores import MPPS, SETTINGS, WIDTH, N, made, read, unfinished

DRAFT = f"{'0a' * 16}.partial"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("s") / "f.zarr")


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "f.zarr"))


def tidy(path: Path, **options: bool) -> UpkeepReport:
    return remove_leftovers(FeatureStore(path), **options)


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def found(report: UpkeepReport, folder: Path) -> dict[str, str]:
    return {str(one.path.relative_to(folder)): one.what for one in report.leftovers}


def test_a_store_in_which_all_is_needed_stays_as_it_is(store: Path, copy: Path) -> None:
    before = below(copy.parent)
    for options in ({}, {"incomplete": True, "prototypes": True}):
        report = tidy(copy, **options)
        assert not report.leftovers
        assert not report.foreign
        assert below(copy.parent) == before
    assert read(copy, whole=True) == read(store, whole=True)


def test_what_dead_writers_left_is_removed(store: Path, copy: Path) -> None:
    unfinished(copy)
    kept = below(copy)
    for place in (
        "A",
        "A/spots",
        "B/enc/2.0000",
        "A/enc/0.5000/embedding/c/0",
        "A/enc/prototypes",
        "B/enc",
        ".",
    ):
        (copy / place / f"zarr.json.{DRAFT}").write_text("half")
    (copy / "B/enc/2.0000/embedding.draft/c").mkdir(parents=True)
    (copy / "B/enc/2.0000/embedding.draft/zarr.json").write_text("half")
    (copy / "A/enc/prototypes/0123456789ab").mkdir()
    (copy / "A/enc/prototypes/0123456789ab/zarr.json").write_text(
        '{"zarr_format": 3, "node_type": "group", "attributes": {}}'
    )
    locks = copy.with_name("f.zarr.locks")
    locks.mkdir()
    (locks / "gone.lock").write_text("")
    (locks / "A.holder.json").write_text('{"pid": 1, "host": "x", "machine": "y", "token": "z"}')
    os.utime(locks / "A.holder.json", (1, 1))
    (locks / f"{'ab' * 16}.now").write_text("")
    os.utime(locks / f"{'ab' * 16}.now", (1, 1))
    (locks / f"{'cd' * 16}.draft").write_text("of one that is at work")
    for mpp in ("0.5000", "2.0000"):
        Journal(journal_path(copy, "B", "enc", mpp), "r", N, WIDTH).close()
    journal_path(copy, "B", "enc", "0.5000").with_suffix(f".{DRAFT}").write_text("half")

    before = below(copy.parent)
    shown = tidy(copy, dry_run=True)
    assert below(copy.parent) == before
    removed = tidy(copy)
    assert [one.path for one in removed.leftovers] == [one.path for one in shown.leftovers]
    assert removed.leftovers == shown.leftovers
    assert len(shown.leftovers) == 14
    assert below(copy) == kept
    assert below(locks) == {f"{'cd' * 16}.draft"}
    assert below(copy.with_name("f.zarr.journals")) == {"B/enc/2.0000.rows"}
    assert not removed.foreign
    assert not tidy(copy).leftovers
    assert read(copy, whole=True) == read(store, whole=True)


def test_what_is_unfinished_goes_only_where_that_is_asked_for(store: Path, copy: Path) -> None:
    before = below(copy)
    unfinished(copy)
    Journal(journal_path(copy, "B", "enc", "2.0000"), "r", N, WIDTH).close()
    shutil.copytree(copy / "A/enc/0.5000", copy / "A/enc/4.0000")
    (copy / "A/enc/4.0000/zarr.json").unlink()  # as a merge leaves it that was killed
    assert not found(tidy(copy), copy)
    assert (copy / "B/enc/2.0000").is_dir()
    report = tidy(copy, incomplete=True)
    assert {
        place: what for place, what in found(report, copy.parent).items() if not place.endswith(".lock")
    } == {
        "f.zarr.journals/B/enc/2.0000.rows": "journal of an unfinished magnification",
        "f.zarr/A/enc/4.0000": "unfinished magnification",
        "f.zarr/B/enc/2.0000": "unfinished magnification",
    }
    assert below(copy) == before
    assert not copy.with_name("f.zarr.journals").exists()
    assert sum(one.bytes for one in report.leftovers) > 1000


def test_prototypes_of_embeddings_that_are_gone_go_only_where_that_is_asked_for(copy: Path) -> None:
    build_all(FeatureStore(copy), "enc", (0.5,), SETTINGS)
    shutil.rmtree(copy / "B/enc/1.0000")
    before = below(copy)
    tidy(copy)
    assert below(copy) == before
    report = tidy(copy, prototypes=True)
    (old,) = report.leftovers
    assert old.what == "prototypes of other embeddings"
    assert old.path.parent == copy / "B/enc/prototypes"
    assert len(list((copy / "B/enc/prototypes").iterdir())) == 2
    assert len(list((copy / "A/enc/prototypes").iterdir())) == 3


def test_a_slide_that_is_being_written_is_left_alone(copy: Path) -> None:
    unfinished(copy)
    for slide in "AB":
        (copy / slide / f"zarr.json.{DRAFT}").write_text("half")
    (copy / f"zarr.json.{DRAFT}").write_text("half")
    with slide_lock(copy, "B"):
        for dry_run in (True, False):
            report = tidy(copy, incomplete=True, dry_run=dry_run)
            assert list(report.locked) == ["B"]
            assert f"A/zarr.json.{DRAFT}" in {
                str(one.path.relative_to(copy.parent))[7:] for one in report.leftovers
            }
        assert (copy / "B/enc/2.0000").is_dir()
        assert (copy / f"B/zarr.json.{DRAFT}").exists()
        assert (copy / f"zarr.json.{DRAFT}").exists()  # an earlier version's writer drafts there
        assert (copy.with_name("f.zarr.locks") / "B.lock").exists()
        assert not (copy / f"A/zarr.json.{DRAFT}").exists()


WRITER = """
import sys, time
from pathlib import Path
from mmap_st.extract.store.writing.lock import slide_lock
with slide_lock(Path(sys.argv[1]), "A"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_another_process_is_never_taken_and_that_of_a_killed_one_is(copy: Path) -> None:
    lock = copy.with_name("f.zarr.locks") / "A.lock"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, copy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert "is writing it" in tidy(copy).locked["A"]
        assert lock.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert {one.what for one in tidy(copy, dry_run=True).leftovers} == {
        "lock that nobody holds",
        "signature of a writer that died",
    }
    assert lock.exists()
    report = tidy(copy)
    assert not report.locked
    assert not below(lock.parent)


def test_a_lock_that_is_removed_while_one_takes_it_is_taken_anew(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another process could hold the same lock, of a file of the same name."""
    path, acquire, removed = copy.with_name("f.zarr.locks") / "A.lock", FileLock.acquire, []

    def remove_first(self: FileLock, *args: object, **options: object) -> object:
        if not removed:
            removed.append(path.unlink())
        return acquire(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(FileLock, "acquire", remove_first)
    with slide_lock(copy, "A"):
        assert removed
        with pytest.raises(InUseError), file_lock(path):
            pass


def test_files_that_are_not_the_stores_are_said_and_left_alone(copy: Path, tmp_path: Path) -> None:
    (copy / "notes").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / f"zarr.json.{DRAFT}").write_text("not ours")
    mine = ["README.md", "notes/x.txt", "A/mine.csv", "A/enc/0.5000/embedding/c/9/0", "A/enc/0.5000/extra/x"]
    for name in mine:
        (copy / name).parent.mkdir(exist_ok=True, parents=True)
        (copy / name).write_text("mine")
    (copy / "B/enc/link").symlink_to(outside)
    (copy.with_name("f.zarr.journals")).mkdir()
    (copy.with_name("f.zarr.journals") / "mine").write_text("mine")
    before = below(tmp_path)
    report = tidy(copy, incomplete=True, prototypes=True)
    assert {str(p.relative_to(tmp_path)) for p in report.foreign} == {
        *(f"f.zarr/{name}" for name in mine),
        "f.zarr/B/enc/link",
        "f.zarr.journals/mine",
    }
    assert below(tmp_path) == before
    assert not report.leftovers


def test_a_damaged_slide_and_a_damaged_magnification_are_left_alone(copy: Path) -> None:
    (copy / "A/zarr.json").write_text("{")
    (copy / "B/enc/0.5000/zarr.json").write_text("{")
    Journal(journal_path(copy, "B", "enc", "0.5000"), "r", N, WIDTH).close()
    before = below(copy)
    report = tidy(copy, incomplete=True, prototypes=True)
    assert list(report.failed) == ["A"]
    assert not report.leftovers
    assert below(copy) == before
    assert journal_path(copy, "B", "enc", "0.5000").exists()


def test_a_packed_store_has_nothing_to_remove(store: Path, tmp_path: Path) -> None:
    pack_into(FeatureStore(store), tmp_path / "f.zip")
    with pytest.raises(StoreError, match="is a packed store, which cannot be written to"):
        tidy(tmp_path / "f.zip")


def test_a_store_that_was_tidied_is_written_on(copy: Path) -> None:
    unfinished(copy)
    tidy(copy)
    with slide_lock(copy, "B"):
        unfinished(copy)
    tidy(copy, incomplete=True)
    assert list(FeatureStore(copy)["B"].complete("enc")) == list(MPPS)
