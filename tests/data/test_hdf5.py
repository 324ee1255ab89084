"""HDF5 files that crash the HDF5 library are refused, by a process that may crash in our place."""

import sys
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


def test_the_probe_reads_the_values_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmap_st.data.hdf5_probe._ROWS_BYTES", 10_000)
    with h5py.File(file) as opened:
        at = opened["X"].id.get_chunk_info(37).byte_offset
    data = bytearray(file.read_bytes())
    data[at + 10 : at + 20] = bytes(10)
    file.write_bytes(data)
    with pytest.raises(OSError, match="filter"):
        probe(str(file))
    check_hdf5(file)  # no crash: the reader says what is wrong with it


def test_a_crash_becomes_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.make_adata().write_h5ad(tmp_path / "S.h5ad")
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(hdf5, "_PROBE", crash)
    (slide,) = open_cohort(f"h5ad:{tmp_path}").slides
    with pytest.raises(
        CountsError, match=r"S\.h5ad cannot be read as an AnnData file: it is damaged: the HDF5"
    ):
        read_counts(slide)


def test_a_file_that_never_ends_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stall = file.with_name("stall.py")
    stall.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(hdf5, "_PROBE", stall)
    monkeypatch.setattr(hdf5, "_SHORTEST_S", 0.1)
    with pytest.raises(OSError, match="damaged"):
        check_hdf5(file)


def test_each_state_of_a_file_is_asked_for_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_hdf5(file)
    monkeypatch.setattr(hdf5, "_PROBE", file.with_name("crash.py"))
    file.with_name("crash.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    check_hdf5(file)
    with h5py.File(file, "a") as changed:
        changed["more"] = 1
    with pytest.raises(OSError, match="damaged"):
        check_hdf5(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_hdf5(tmp_path / "none.h5"):
        pass
