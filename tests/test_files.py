"""Files are there whole or not at all, locks end with their process, and hashes are of bytes."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from mmap_st.errors import first_line
from mmap_st.files import (
    InUseError,
    canonical_json,
    file_lock,
    has_no_file_locks,
    replacing,
    sha256_of_file,
    sha256_of_json,
    write_text,
)


@pytest.mark.parametrize("before", [None, "before"])
@pytest.mark.parametrize("failure", [ValueError, OSError, KeyboardInterrupt])
def test_a_file_whose_writer_fails_stays_as_it_was(tmp_path: Path, before, failure) -> None:
    path = tmp_path / "a.json"
    if before is not None:
        path.write_text(before)

    def fail() -> None:
        with replacing(path) as draft:
            draft.write_text("half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else ["a.json"])
    assert before is None or path.read_text() == before


def test_a_disk_that_fails_at_the_end_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "after")
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_is_on_disk_before_it_takes_the_others_place(tmp_path: Path, monkeypatch) -> None:
    path, steps = tmp_path / "a.txt", []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: steps.append("fsync") or fsync(number))
    monkeypatch.setattr(Path, "replace", lambda *args: steps.append("replace") or replace(*args))
    write_text(path, "µm\n")
    assert steps == ["fsync", "replace"]
    assert path.read_bytes() == "µm\n".encode()
    write_text(path, "again", sync=False)
    assert steps == ["fsync", "replace", "replace"]


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as draft:
        left = draft
        draft.write_text("1")
    left.write_text("half")
    write_text(tmp_path / "a.txt", "2")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "2"


def test_a_lock_is_exclusive_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    program = (
        "import sys; from pathlib import Path; from mmap_st.files import file_lock\n"
        "with file_lock(Path(sys.argv[1])) as held: print(held, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    for wait_s in (0.0, 0.1):
        with pytest.raises(InUseError, match=r"x\.lock"), file_lock(path, wait_s):
            pass
    other.kill()
    other.wait()
    with file_lock(path, None) as held:
        assert held
    assert path.exists()


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch) -> None:
    def none(self, **more):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", none)
    with file_lock(tmp_path / "x.lock") as held:
        assert not held


def test_other_faults_of_a_lock_are_raised(tmp_path: Path) -> None:
    with pytest.raises(OSError), file_lock(tmp_path):  # noqa: PT011 - of many kinds
        pass


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NotImplementedError(), True),
        (OSError(errno.ENOLCK, ""), True),
        (OSError(errno.EOPNOTSUPP, ""), True),
        (OSError(errno.EACCES, ""), False),
        (ValueError(), False),
    ],
)
def test_which_errors_say_that_there_are_no_locks(error: Exception, expected: bool) -> None:
    assert has_no_file_locks(error) is expected


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert canonical_json({"b": [1, "µ"], "a": None}) == '{"a":null,"b":[1,"\\u00b5"]}'
    assert sha256_of_json({"b": 1, "a": 2}) == sha256_of_json({"a": 2, "b": 1})
    with pytest.raises(FileNotFoundError):
        sha256_of_file(tmp_path / "none")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n\n  x"), "x"),
        (KeyError(), "KeyError"),
        (OSError(), "OSError"),
    ],
)
def test_the_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line
