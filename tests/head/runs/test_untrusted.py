"""Nothing that a run, a store or a cohort names is executed, whatever they say."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import mmap_st as mm
from mmap_st.errors import HeadError
from mmap_st.files import sha256_of_file
from mmap_st.head.runs import read_head
from mmap_st.plugins import ChangedCodeError, load_file

Command = Callable[..., subprocess.CompletedProcess[str]]
CODE = """
from pathlib import Path
from mmap_st.heads import HeadMethod
from mmap_st.head.linear import RIDGE
from dataclasses import replace
Path(__file__).with_name("executed").touch()
HEAD = replace(RIDGE, name="theirs")
"""


@pytest.fixture
def received(tiny, tmp_path: Path) -> Path:
    """A run as somebody sends it: its head is code that lies beside it."""
    run = tmp_path / "received"
    shutil.copytree(tiny.run, run)
    (run / "theirs.py").write_text(CODE)
    card = json.loads((run / "head.json").read_text())
    card |= {"head": f"{run / 'theirs.py'}:HEAD", "head_code_sha256": sha256_of_file(run / "theirs.py")}
    (run / "head.json").write_text(json.dumps(card))
    return run


def was_executed(run: Path) -> bool:
    return (run / "executed").exists()


def test_commands_do_not_execute_what_a_run_names(
    received: Path, tiny, mmap: Command, tmp_path: Path
) -> None:
    predicted = mmap("predict", received, tiny.store, "--out", tmp_path / "out", "--slides", "B1")
    assert predicted.returncode == 2
    assert "code that a run names is not executed" in predicted.stderr
    assert "--head-code FILE.py:NAME" in predicted.stderr
    assert len(predicted.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    # Maps need no code of the head.
    drawn = mmap("report", received, "--out", tmp_path / "maps", "--store", tiny.store)
    assert drawn.returncode == 0, drawn.stderr
    with pytest.raises(HeadError, match="is not executed"):
        mm.load_head(received)
    assert not was_executed(received)


def test_code_that_the_user_gives_is_executed_if_it_is_the_recorded_code(
    received: Path, tiny, mmap: Command, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    shutil.copy(received / "theirs.py", mine)
    words = ("predict", received, tiny.store, "--out", tmp_path / "out", "--slides", "B1")
    done = mmap(*words, "--head-code", f"{mine}:HEAD")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "executed").exists()
    assert not was_executed(received)
    assert mm.load_head(received, head_code=f"{mine}:HEAD").head == "theirs"


def test_other_code_is_refused_before_it_is_executed(
    received: Path, tiny, mmap: Command, tmp_path: Path
) -> None:
    (received / "theirs.py").write_text(CODE + "# changed\n")
    words = ("predict", received, tiny.store, "--out", tmp_path / "out", "--slides", "B1")
    words = (*words, "--head-code", f"{received / 'theirs.py'}:HEAD")
    refused = mmap(*words)
    assert refused.returncode == 2
    assert "was trained with other code than this" in refused.stderr
    assert not was_executed(received)
    insisted = mmap(*words, "--allow-changed-code")
    assert insisted.returncode == 0, insisted.stderr
    assert was_executed(received)


@pytest.mark.parametrize(
    ("given", "part"), [("no.py:HEAD", "there is no such file"), ("near", "there is no such file")]
)
def test_a_wrong_reference_is_one_sentence(received: Path, given: str, part: str) -> None:
    with pytest.raises(HeadError, match=part):
        read_head(received, given)


def test_a_built_in_head_takes_no_code(tiny, received: Path) -> None:
    with pytest.raises(HeadError, match="is a built-in head; leave it out"):
        read_head(tiny.run, f"{received / 'theirs.py'}:HEAD")
    assert not was_executed(received)


def test_a_head_that_this_process_ran_needs_no_word(received: Path) -> None:
    """After `fit_head(head="mine.py:HEAD")` the run predicts in the same session."""
    load_file(received / "theirs.py", "HEAD")
    assert read_head(received).method.name == "theirs"
    (received / "theirs.py").write_text(CODE + "# changed\n")
    with pytest.raises(HeadError, match="is not executed"):
        read_head(received)


def test_compiled_code_beside_a_file_is_not_executed(tmp_path: Path) -> None:
    """A .pyc with the size and time of an innocent file: Python itself would take it for that file's."""
    file, marker = tmp_path / "innocent.py", tmp_path / "executed"
    evil = f"open({str(marker)!r}, 'w'); VALUE = 2\n"
    innocent = "VALUE = 1".ljust(len(evil) - 1) + "\n"
    file.write_text(evil)
    compiled = py_compile.compile(str(file), doraise=True)
    assert compiled is not None
    when = file.stat()
    file.write_text(innocent)
    os.utime(file, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert load_file(file, "VALUE") == 1
    assert not marker.exists()
    with pytest.raises(ChangedCodeError):
        load_file(file, "VALUE", "0" * 64)
