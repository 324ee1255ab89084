"""HDF5 files that crash the HDF5 library are refused, by a process that may crash in our place."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from mmap_st.data import hdf5
from mmap_st.data.hdf5 import check_hdf5, open_hdf5
from mmap_st.data.hdf5_probe import probe
from mmap_st.data.readers import open_cohort, read_counts
from mmap_st.errors import CountsError

sys.path.insert(0, str(Path(__file__).parent))
import layouts


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One of each: attributes, text of any length, no value, one value, rows in packed chunks."""
    path = tmp_path / "S.h5"
    with h5py.File(path, "w") as made:
        made.attrs["version"] = "1"
        group = made.create_group("obs")
        group.attrs["columns"] = ["a", "b"]
        group["name"] = np.array(["x", "yy"], dtype=h5py.string_dtype())
        group["none"] = h5py.Empty("f4")
        group["one"] = 3
        group["no_rows"] = np.zeros((0, 4))
        rows = np.random.default_rng(0).integers(0, 9, (4000, 20))
        made.create_dataset("X", data=rows, chunks=(100, 20), compression="gzip")
    return path


def test_whole_files_are_read_and_opened(file: Path) -> None:
    probe(str(file))
    with open_hdf5(file) as opened:
        assert opened["X"].shape == (4000, 20)


CRASH = "import os, signal; os.kill(os.getpid(), signal.{})"


@pytest.fixture(autouse=True)
def _own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test asks a process of its own, and about each file anew."""
    prober = hdf5._Prober()
    monkeypatch.setattr(hdf5, "_PROBER", prober)
    hdf5._fault.cache_clear()
    yield
    prober.close()


def probe_that(file: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file.with_name("probe.py")
    path.write_text(program)
    monkeypatch.setattr(hdf5, "_PROBE", path)


@pytest.mark.parametrize("values", ["numbers", "text of any length"])
def test_the_probe_reads_the_values_that_can_crash_a_reader(file: Path, monkeypatch, values: str) -> None:
    monkeypatch.setattr("mmap_st.data.hdf5_probe._ROWS_BYTES", 10_000)
    with h5py.File(file, "a") as opened:
        text = np.array([f"t{i}" for i in range(4000)], dtype=h5py.string_dtype())
        opened.create_dataset("text", data=text, chunks=(100,), compression="gzip")
    with h5py.File(file) as opened:
        name = "X" if values == "numbers" else "text"
        at = opened[name].id.get_chunk_info(17).byte_offset
    data = bytearray(file.read_bytes())
    data[at + 10 : at + 20] = bytes(10)
    file.write_bytes(data)
    if values == "numbers":
        probe(str(file))  # damage in them is an error for their reader
    else:
        with pytest.raises(OSError, match="filter"):
            probe(str(file))
    check_hdf5(file)  # no crash: the reader says what is wrong with it


def test_a_crash_becomes_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.make_adata().write_h5ad(tmp_path / "S.h5ad")
    probe_that(tmp_path / "S.h5ad", CRASH.format("SIGSEGV"), monkeypatch)
    (slide,) = open_cohort(f"h5ad:{tmp_path}").slides
    with pytest.raises(
        CountsError, match=r"S\.h5ad cannot be read as an AnnData file: it is damaged: the HDF5"
    ):
        read_counts(slide)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL"])
def test_every_kind_of_crash_is_damage(file: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    probe_that(file, CRASH.format(name), monkeypatch)
    with pytest.raises(OSError, match="it is damaged: the HDF5 library crashes on it"):
        check_hdf5(file)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (CRASH.format("SIGKILL"), "was killed, as the system does where memory runs out; free some memory"),
        (CRASH.format("SIGTERM"), "was ended by SIGTERM; run the same command again"),
        ("import no_such_module", "ended with status 1; check that h5py can be imported"),
    ],
)
def test_a_file_that_could_not_be_checked_is_not_called_damaged_and_is_tried_again(
    file: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    original = hdf5._PROBE
    probe_that(file, program, monkeypatch)
    with pytest.raises(OSError, match=said) as caught:
        check_hdf5(file)
    assert "damaged" not in str(caught.value)
    monkeypatch.setattr(hdf5, "_PROBE", original)
    check_hdf5(file)


def test_a_file_that_never_ends_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe_that(file, "import time; time.sleep(60)", monkeypatch)
    monkeypatch.setattr(hdf5, "_SHORTEST_S", 0.1)
    with pytest.raises(OSError, match="it is damaged: the HDF5 library never finishes"):
        check_hdf5(file)


def test_each_state_of_a_file_is_asked_for_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    ask = hdf5._Prober.ask
    monkeypatch.setattr(hdf5._Prober, "ask", lambda *args: asked.append(args[1]) or ask(*args))
    check_hdf5(file)
    check_hdf5(file)
    assert len(asked) == 1
    with h5py.File(file, "a") as changed:
        changed["more"] = 1
    check_hdf5(file)
    assert len(asked) == 2


def test_one_process_looks_at_many_files(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **more: started.append(1) or popen(*args, **more))
    for i in range(20):
        path = file.with_name(f"{i} Müller\n.h5")
        path.write_bytes(file.read_bytes())
        check_hdf5(path)
    (file.with_name("text.h5")).write_text("no HDF5")
    check_hdf5(file.with_name("text.h5"))
    assert len(started) == 1


def test_a_crash_after_other_files_is_blamed_on_a_file_only_if_it_crashes_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process that an earlier file left broken: it crashes on the second file that it is asked for.
    probe_that(
        file,
        "import sys, os, signal\nfor i, line in enumerate(sys.stdin):\n"
        "    if i: os.kill(os.getpid(), signal.SIGSEGV)\n    print('\"\"', flush=True)\n",
        monkeypatch,
    )
    other = file.with_name("other.h5")
    other.write_bytes(file.read_bytes())
    check_hdf5(file)
    check_hdf5(other)


def test_many_threads_may_ask(file: Path) -> None:
    paths = [file.with_name(f"{i}.h5") for i in range(12)]
    for path in paths:
        path.write_bytes(file.read_bytes())
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(check_hdf5, paths))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_hdf5(tmp_path / "none.h5"):
        pass
