"""Open HDF5 files that may be damaged.

libhdf5 can crash on damaged metadata, and a crash takes the whole program with it. So another process first
looks at a file (`mmap_st.data.hdf5_probe`), one process for all files. Where it crashes, this one says so.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmap_st.data.tables import largest_table, refuse_large
from mmap_st.errors import MmapError
from mmap_st.files import refuse_special

if TYPE_CHECKING:
    import h5py

_PROBE = Path(__file__).with_name("hdf5_probe.py")
_SLOWEST_BYTES_PER_S = 1_000_000
_SHORTEST_S = 60.0
#: What ends a process that does what it must not, as a crash of a library does.
_CRASHES = tuple(
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL")
    if hasattr(signal, name)
)


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


def read_item(item: h5py.Group | h5py.Dataset, read: Callable[[Any], Any], error: type[MmapError]) -> Any:
    """What `read` makes of a part of an open file, if the arrays below it fit into memory as they claim.

    Raises
    ------
    error
        If they do not: compressed, or never written, they may be of any size in a small file.
    """
    import h5py

    sizes = []

    def note_size(_: str, part: object) -> None:
        if isinstance(part, h5py.Dataset):
            sizes.append(int(part.nbytes))

    if isinstance(item, h5py.Dataset):
        note_size("", item)
    else:
        item.visititems(note_size)
    refuse_large(Path(item.file.filename), sum(sizes), f"{item.name} has", error, arrays=True)
    return read(item)


def check_hdf5(path: Path) -> None:
    """Refuse a file that crashes libhdf5; any other fault is left to whoever reads it.

    Raises
    ------
    OSError
        If it does, if there is no such file, or if the file could not be checked.
    """
    refuse_special(path, OSError)
    status = path.stat()
    fault = _fault(path.resolve(), status.st_size, status.st_mtime_ns)
    if fault:
        raise OSError(fault)


@cache
def _fault(path: Path, size: int, _: int) -> str:
    """What is wrong with a file that nobody can open; empty for others. Found once for each state of a file.

    Raises
    ------
    OSError
        If that cannot be told; it is tried again the next time.
    """
    try:
        status = _PROBER.ask(path, _SHORTEST_S + size / _SLOWEST_BYTES_PER_S)
    except TimeoutError:
        return "it is damaged: the HDF5 library never finishes reading it"
    if status is None:
        return ""
    if _is_crash(status):
        return "it is damaged: the HDF5 library crashes on it"
    raise OSError(_not_checked(status))


def _is_crash(status: int) -> bool:
    """Whether a process ended as by a crash of its own: by such a signal, or an exception of Windows'."""
    return -status in _CRASHES or (os.name == "nt" and status not in (0, 1))


def _not_checked(status: int) -> str:
    """Why a file could not be checked, by the status with which the process ended."""
    if status >= 0:
        return f"the process that checks it ended with status {status}; check that h5py can be imported"
    name = signal.Signals(-status).name if -status in signal.valid_signals() else f"signal {-status}"
    if name == "SIGKILL":
        return (
            "the process that checks it was killed, as the system does where memory runs out; free some"
            " memory and run the same command again"
        )
    return f"the process that checks it was ended by {name}; run the same command again"


class _Prober:
    """The process that looks at files, one after the other; started when needed, and again once it ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._started_by = 0

    def ask(self, path: Path, longest_s: float) -> int | None:
        """Have a file looked at; None if the process survives that, else the status with which it ends.

        Raises
        ------
        TimeoutError
            If it takes longer than `longest_s` seconds.
        """
        with self._lock:
            fresh = self._start()
            status = self._ask(path, longest_s)
            if status is not None and not fresh:
                # An earlier file may have left it broken: a fresh process tells.
                self._start()
                status = self._ask(path, longest_s)
            return status

    def _start(self) -> bool:
        """Start the process unless it is there; whether it was started."""
        if self._process is not None and self._started_by == os.getpid() and self._process.poll() is None:
            return False
        # -P: modules of this folder are not to be taken for others. Not in the terminal's group of processes:
        # Ctrl-C is for this program, which asks for one more file perhaps.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", str(_PROBE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._started_by = os.getpid()
        self._answers = queue.SimpleQueue()
        threading.Thread(
            target=_pass_on, args=(self._process, self._answers), name="HDF5 probe", daemon=True
        ).start()
        return True

    def _ask(self, path: Path, longest_s: float) -> int | None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: no answer will come
            process.stdin.write(json.dumps([str(path), 2 * largest_table()]) + "\n")
            process.stdin.flush()
        try:
            answer = self._answers.get(timeout=longest_s)
        except queue.Empty:
            self.close()
            raise TimeoutError from None
        return process.wait() if not answer else None

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._started_by == os.getpid():
            self._process.kill()
            self._process.wait()
        self._process = None


def _pass_on(process: subprocess.Popen[str], answers: queue.SimpleQueue[str]) -> None:
    """Pass lines on as they come, so that they can be waited for with a limit; an empty one at the end."""
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(line)
    answers.put("")


_PROBER = _Prober()
atexit.register(_PROBER.close)
