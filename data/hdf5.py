"""Open HDF5 files that may be damaged.

libhdf5 can crash on damaged metadata, and a crash takes the whole program with it. So every file is first
read by a process of its own (`mmap_st.data.hdf5_probe`); where that one crashes, this one only says so.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import h5py

_PROBE = Path(__file__).with_name("hdf5_probe.py")
_SLOWEST_BYTES_PER_S = 1_000_000
_SHORTEST_S = 60.0


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading, if libhdf5 survives it.

    Raises
    ------
    OSError
        If the file cannot be read, or is damaged in a way that crashes libhdf5.
    """
    import h5py

    check_hdf5(path)
    with h5py.File(path, "r") as file:
        yield file


def check_hdf5(path: Path) -> None:
    """Refuse a file that crashes libhdf5; any other fault is left to whoever reads it.

    Raises
    ------
    OSError
        If it does, or if there is no such file.
    """
    status = path.stat()
    if _crashes(path.resolve(), status.st_size, status.st_mtime_ns):
        raise OSError("it is damaged: the HDF5 library crashes on it")


@cache
def _crashes(path: Path, size: int, _: int) -> bool:
    """Whether reading all of a file crashes or never ends; asked once for each state of a file."""
    # -P: modules of this folder are not to be taken for others.
    command = [sys.executable, "-P", str(_PROBE), str(path)]
    longest_s = _SHORTEST_S + size / _SLOWEST_BYTES_PER_S
    try:
        ended = subprocess.run(command, capture_output=True, check=False, timeout=longest_s)  # noqa: S603
    except subprocess.TimeoutExpired:
        return True
    # A signal, or (on Windows) an exception of the system; 1 is an exception of Python's.
    return ended.returncode not in (0, 1)
