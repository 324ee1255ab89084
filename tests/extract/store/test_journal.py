"""The journal: what was appended is there after any end of the process, and nothing else is."""

import errno
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmap_st.errors import StoreError
from mmap_st.extract.store.writing.journal import Journal

N, WIDTH = 40, 5


def opened(path: Path, recipe: str = "r") -> Journal:
    return Journal(path, recipe, N, WIDTH)


def vectors(rows: np.ndarray) -> np.ndarray:
    return (rows[:, None] + np.arange(WIDTH) / 10).astype(np.float32)


def keep(journal: Journal, rows: list[int], valid: bool = True) -> None:
    where = np.array(rows)
    journal.append(where, vectors(where), np.full(len(where), valid))


@given(st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=6, unique=True), max_size=8), st.data())
def test_a_torn_journal_holds_all_whole_records_before_the_tear(tmp_path_factory, batches, data) -> None:
    path = tmp_path_factory.mktemp("j") / "a.rows"
    journal = opened(path)
    sizes = [path.stat().st_size]
    for rows in batches:
        keep(journal, rows)
        sizes += [path.stat().st_size]
    journal.close()
    cut = data.draw(st.integers(128, sizes[-1]))
    with path.open("r+b") as file:
        file.truncate(cut)
    whole = {row for rows, size in zip(batches, sizes[1:], strict=True) if size <= cut for row in rows}
    again = opened(path)
    assert whole <= set(np.flatnonzero(again.done).tolist()) <= {row for rows in batches for row in rows}
    embedding, valid = again.read(range(N))
    assert np.array_equal(valid, again.done)
    assert np.array_equal(embedding[valid], vectors(np.flatnonzero(valid)))


def test_what_another_recipe_made_is_not_taken_over(tmp_path: Path) -> None:
    journal = opened(tmp_path / "a.rows")
    keep(journal, [1, 2])
    journal.close()
    assert not opened(tmp_path / "a.rows", "another").done.any()


def test_rows_that_could_not_be_read_are_tried_again_by_the_next_process(tmp_path: Path) -> None:
    journal = opened(tmp_path / "a.rows")
    keep(journal, [1, 2])
    keep(journal, [3], valid=False)
    assert journal.done[[1, 2, 3]].all()
    journal.close()
    assert np.flatnonzero(opened(tmp_path / "a.rows").done).tolist() == [1, 2]


def test_a_writer_that_lost_its_lock_cannot_change_the_rows_of_the_next(tmp_path: Path) -> None:
    slept = opened(tmp_path / "a.rows")
    keep(slept, [0, 1])
    follower = opened(tmp_path / "a.rows")
    keep(follower, [2, 3])
    keep(slept, [8, 9])  # it wakes up
    embedding, valid = follower.read(range(N))
    assert np.flatnonzero(valid).tolist() == [0, 1, 2, 3]
    assert np.array_equal(embedding[:4], vectors(np.arange(4)))


def test_rows_that_were_changed_on_disk_are_never_passed_on(tmp_path: Path) -> None:
    journal = opened(tmp_path / "a.rows")
    keep(journal, [0, 1])
    with (tmp_path / "a.rows").open("r+b") as file:
        file.seek(-12, 2)
        file.write(b"\x01\x02")
    with pytest.raises(StoreError, match="was changed by another program"):
        journal.read(range(2))


@given(st.permutations(range(N)), st.integers(0, N), st.integers(1, 5))
def test_rows_are_read_back_in_whatever_order_they_came(tmp_path_factory, order, count, part) -> None:
    """Neighbours in the file are read at once, and what lies between two that are wanted is left out."""
    path = tmp_path_factory.mktemp("j") / "a.rows"
    journal = opened(path)
    for start in range(0, count, part):
        keep(journal, order[start : min(start + part, count)])
    for rows in (range(N), range(7, 19), range(0)):
        embedding, valid = journal.read(rows)
        there = [row for row in rows if row in order[:count]]
        assert (np.flatnonzero(valid) + rows.start).tolist() == there
        assert np.array_equal(embedding[valid], vectors(np.array(there, int)))


def test_wide_rows_have_the_check_sum_of_their_whole(tmp_path: Path) -> None:
    """Longer than zlib sums up without giving up Python's lock: journals of before are read as they were."""
    journal = Journal(tmp_path / "a.rows", "r", 3, 4000)
    journal.append(np.array([2]), np.ones((1, 4000), np.float32), np.array([True]))
    record = (tmp_path / "a.rows").read_bytes()[128:]
    assert zlib.crc32(record[:-4]) == int.from_bytes(record[-4:], "little")
    assert journal.read(range(3))[1].tolist() == [False, False, True]


def test_a_journal_that_was_cut_while_open_is_never_passed_on(tmp_path: Path) -> None:
    journal = opened(tmp_path / "a.rows")
    keep(journal, [0, 1, 2])
    os.truncate(tmp_path / "a.rows", 128 + 30)
    with pytest.raises(StoreError, match="was changed by another program"):
        journal.read(range(3))


def test_folders_that_another_slide_removes_meanwhile_are_made_again(tmp_path: Path, monkeypatch) -> None:
    mkdir, calls = Path.mkdir, [0]

    def removed_at_once(self: Path, *args, **kwargs) -> None:
        mkdir(self, *args, **kwargs)
        calls[0] += 1
        if calls[0] <= 3:
            self.rmdir()

    monkeypatch.setattr(Path, "mkdir", removed_at_once)
    keep(opened(tmp_path / "s" / "a.rows"), [1])


def test_a_journal_that_is_done_takes_its_folders_along(tmp_path: Path) -> None:
    first, second = (opened(tmp_path / "j" / name / "e" / "a.rows") for name in ("A1", "B1"))
    first.delete()
    assert [folder.name for folder in (tmp_path / "j").iterdir()] == ["B1"]
    second.delete()
    assert not (tmp_path / "j").exists()


def test_the_journal_is_synced_at_most_once_a_second_and_when_it_is_closed(
    tmp_path: Path, monkeypatch
) -> None:
    now, synced = [100.0], []
    fsync = os.fsync

    def counted(number: int) -> None:
        synced.append(now[0])
        fsync(number)

    monkeypatch.setattr(os, "fsync", counted)
    journal = Journal(tmp_path / "a.rows", "r", N, WIDTH, clock=lambda: now[0])
    synced.clear()  # of what an earlier process left
    for i in range(24):  # eight batches a second
        keep(journal, [i])
        now[0] += 0.125
    assert synced == [101.0, 102.0]
    now[0] = 200.0
    keep(journal, [30])  # after a long batch it is synced at once
    assert synced[2:] == [200.0]
    keep(journal, [31])
    journal.close()
    journal.close()
    assert synced[3:] == [200.0]  # the last batch, once
    again = opened(tmp_path / "a.rows")
    again.close()
    assert len(synced) == 5  # what was taken over; nothing was added


def test_a_disk_that_fails_to_sync_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    now = [0.0]
    journal = Journal(tmp_path / "a.rows", "r", N, WIDTH, clock=lambda: now[0])
    now[0] = 5.0

    def fails(number: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StoreError, match=r"failed .Input/output error.; check the disk"):
        keep(journal, [1])
    assert not journal.done.any()
    journal.close()
