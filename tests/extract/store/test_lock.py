"""One writer a slide: on this machine by the system's lock, across machines by signatures that are touched."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from mmap_st.errors import SlideLockedError, StoppedError
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.store.recipe import encode_name
from mmap_st.extract.store.writing import lock as locks
from mmap_st.extract.store.writing.lock import SlideLock


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_BEAT_S", 0.05)
    monkeypatch.setattr(locks, "_DEAD_AFTER_S", 1.0)
    monkeypatch.setattr(locks, "_POLL_S", 0.02)


def sign_elsewhere(store: Path) -> Path:
    """What a writer on another machine leaves."""
    folder = store.with_name(store.name + ".locks")
    folder.mkdir(exist_ok=True)
    file = folder / "A1.holder.json"
    file.write_text(json.dumps({"pid": 7, "host": "node9", "machine": "node9 boot", "token": "theirs"}))
    return file


def test_a_second_writer_here_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    with (
        SlideLock(tmp_path / "f.zarr", "A1"),
        pytest.raises(SlideLockedError, match=f"{os.getpid()} on .* is writing it"),
    ):
        SlideLock(tmp_path / "f.zarr", "A1").__enter__()
    with SlideLock(tmp_path / "f.zarr", "A1"):
        pass


def test_a_writer_elsewhere_that_gives_signs_of_life_is_respected(tmp_path: Path) -> None:
    file = sign_elsewhere(tmp_path / "f.zarr")
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.05):
            os.utime(file)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(SlideLockedError, match="7 on node9"):
            SlideLock(tmp_path / "f.zarr", "A1").__enter__()
    finally:
        done.set()
        beating.join()
    # The system's lock was let go again.
    os.utime(file, (1, 1))
    with SlideLock(tmp_path / "f.zarr", "A1"):
        pass


def test_a_writer_elsewhere_that_died_is_waited_out_without_a_hand(tmp_path: Path) -> None:
    sign_elsewhere(tmp_path / "f.zarr")
    began = time.monotonic()
    with SlideLock(tmp_path / "f.zarr", "A1"):
        assert time.monotonic() - began > 0.7


def test_a_signature_from_the_future_holds_nobody_up(tmp_path: Path) -> None:
    file = sign_elsewhere(tmp_path / "f.zarr")
    os.utime(file, (time.time() + 1e6,) * 2)
    began = time.monotonic()
    with SlideLock(tmp_path / "f.zarr", "A1"):
        assert 0.7 < time.monotonic() - began < 5


def test_waiting_for_a_writer_elsewhere_can_be_stopped(tmp_path: Path) -> None:
    sign_elsewhere(tmp_path / "f.zarr")
    with pytest.raises(StoppedError):
        SlideLock(tmp_path / "f.zarr", "A1", stop=lambda: True).__enter__()


def test_a_holder_touches_its_signature_and_removes_it(tmp_path: Path) -> None:
    with SlideLock(tmp_path / "f.zarr", "A1") as held:
        file = tmp_path / "f.zarr.locks" / "A1.holder.json"
        os.utime(file, (1, 1))
        time.sleep(0.3)
        assert file.stat().st_mtime > 1e9
        held.check()
    assert not file.exists()


def test_a_holder_whose_lock_was_taken_over_finds_out(tmp_path: Path) -> None:
    with SlideLock(tmp_path / "f.zarr", "A1") as held:
        file = sign_elsewhere(tmp_path / "f.zarr")
        with pytest.raises(SlideLockedError, match="node9"):
            held.check()
    assert file.exists()  # it is the other's
    os.utime(file, (1, 1))
    with SlideLock(tmp_path / "f.zarr", "A1") as held:
        file.unlink()
        with pytest.raises(SlideLockedError, match="was removed"):
            held.check()


def test_where_files_cannot_be_locked_signatures_keep_writers_apart(tmp_path: Path, monkeypatch) -> None:
    def no_locks(*_: object, **__: object) -> None:
        raise NotImplementedError("no flock here")

    with SlideLock(tmp_path / "f.zarr", "A1"):
        monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
        with pytest.raises(SlideLockedError):
            SlideLock(tmp_path / "f.zarr", "A1").__enter__()
    with SlideLock(tmp_path / "f.zarr", "A1"):
        pass


@pytest.mark.parametrize("name", ["new", "New", "new store", "new.lock", "new store.lock", "%20", "a/b"])
def test_a_slide_of_any_name_is_written_while_a_store_is_made(name: str, tmp_path: Path) -> None:
    """The lock of making the store is no slide's."""
    done = threading.Event()

    def make() -> None:
        FeatureStore.create(tmp_path / "f.zarr")
        done.set()

    making = threading.Thread(target=make, daemon=True)
    with SlideLock(tmp_path / "f.zarr", encode_name(name)):
        making.start()
        assert done.wait(10)
    making.join()


def test_slides_are_locked_by_the_files_of_before(tmp_path: Path) -> None:
    """Programs of earlier versions look at them."""
    with SlideLock(tmp_path / "f.zarr", "new"):
        assert sorted(file.name for file in (tmp_path / "f.zarr.locks").iterdir()) == [
            "new.holder.json",
            "new.lock",
        ]
