"""A connection to Ray: to a cluster, or to one that is started on this machine."""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import mmap_st
from mmap_st.errors import MissingDependencyError, RequestError, first_line, printable

#: How long the head of a cluster may take to answer.
_ANSWER_S = 10.0
#: Ray's smallest store of objects, with room to spare for plans of slides.
_OBJECTS_BYTES = 100 << 20
_SAID_HERE = (
    "worker died or was killed|Raylet is terminated|marked dead|cannot be scheduled|memory pressure"
    "|Task run_fit failed"
)
_QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def connected_ray(address: str | None, cpus: int, objects_bytes: int = 0) -> Iterator[Any]:
    """Connect to Ray, or start it here; what was started or connected is left in the end.

    Parameters
    ----------
    address
        Of a cluster, or ``auto``; None: Ray is started here, unless this process is connected already.
    cpus
        How many Ray has, where it is started here.
    objects_bytes
        Size of what will be put into its store of objects, where it is started here.

    Yields
    ------
    The module.

    Raises
    ------
    MissingDependencyError
        If Ray is not installed.
    RequestError
        If no cluster answers, or Ray cannot be started.
    """
    with ExitStack() as resources:
        with _own_signals():
            ray = imported_ray()
            if ray.is_initialized():
                _check_connected(ray, address)
            elif address is None:
                _start_here(ray, cpus, _OBJECTS_BYTES + objects_bytes, resources)
            else:
                _connect(ray, address, resources)
        yield ray


def resources_of_nodes(ray: Any) -> list[Mapping[str, float]]:
    """What each node that is alive has in all, such as ``{"CPU": 16.0, "GPU": 1.0}``."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@dataclass(frozen=True)
class Origin:
    """Where a run was started that works on Ray.

    Attributes
    ----------
    version
        Of this package there.
    folder
        From which relative paths lead.
    imports_from_folder
        Whether modules are imported from there too.
    """

    version: str
    folder: str
    imports_from_folder: bool

    @classmethod
    def here(cls) -> Origin:
        """Of this process."""
        folder = os.getcwd()
        return cls(mmap_st.__version__, folder, folder in map(os.path.abspath, sys.path))

    def take_over_imports(self) -> None:
        """Import from where the run does; Ray imports from its folder first."""
        if not self.imports_from_folder:
            sys.path[:] = [path for path in sys.path if path != self.folder]

    def check_version(self) -> None:
        """Refuse to work where this package is of another version.

        Raises
        ------
        RequestError
            Naming both, and the machine.
        """
        if self.version != mmap_st.__version__:
            raise RequestError(
                f"mmap-st is {mmap_st.__version__} on {platform.node()} and {self.version} where the run was"
                " started; install one version on all machines."
            )


def how_it_died(ray: Any, error: Exception) -> str:
    """What became of a process, in a few words of what Ray says in many."""
    said = str(error).lower()
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "was ended by Ray, since its machine ran out of memory"
    with_node = "node has died" in said or "node it was running on is dead" in said
    return "died with its node" if with_node else "died"


def imported_ray() -> Any:
    """The module; `MissingDependencyError` where it is not installed."""
    # It would tell its makers of every run; who says otherwise in the environment is obeyed. And it would
    # print at length what is said here in one line.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _SAID_HERE)
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            "--engine ray needs the package ray: `pip install 'mmap-st[ray]'`."
        ) from error
    return ray


def _start_here(ray: Any, cpus: int, objects_bytes: int, resources: ExitStack) -> None:
    """Start Ray for this run alone, with files of its own: another user's would be in the way."""
    short = "/tmp" if os.path.isdir("/tmp") else None  # noqa: S108 - paths of sockets are short
    folder = tempfile.TemporaryDirectory(prefix="mmap-ray-", dir=short, ignore_cleanup_errors=True)
    try:
        ray.init(
            "local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=objects_bytes,
            _temp_dir=resources.enter_context(folder),
            **_QUIET,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise RequestError(
            f"--engine ray: Ray cannot be started here ({first_line(error).rstrip('.')})."
        ) from error
    resources.callback(ray.shutdown)


def _connect(ray: Any, address: str, resources: ExitStack) -> None:
    try:
        # Where nobody listens, Ray itself would go on trying for more than ten minutes.
        host, _, port = (os.environ.get("RAY_ADDRESS", "") if address == "auto" else address).rpartition(":")
        if port.isdecimal():
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
        ray.init(address, **_QUIET)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        if "Version mismatch" in str(error):
            versions = " ".join(str(error).split()).rstrip(".")
            raise RequestError(
                f"--address {printable(address)}: {printable(versions)}; install the same Ray and"
                " Python here."
            ) from error
        why = first_line(error).rstrip(".")
        raise RequestError(
            f"--address {printable(address)}: no Ray cluster can be reached there ({why}); one that asks for"
            " a token needs RAY_AUTH_MODE=token."
        ) from error
    resources.callback(ray.shutdown)


def _check_connected(ray: Any, address: str | None) -> None:
    """Refuse an address where this process is connected to Ray already, as a notebook may be."""
    here = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", here):
        raise RequestError(
            f"--address {printable(str(address))}: this process is connected to Ray at {here}; leave"
            " the address out, or call ray.shutdown() first."
        )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what handles signals: importing Ray replaces it, and a run is to stop between two batches."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
