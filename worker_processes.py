"""What processes that work for another one share: how they start, and that they end with it."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import parent_process
from types import ModuleType


def start_method(
    *modules: str,
) -> multiprocessing.context.SpawnContext | multiprocessing.context.ForkServerContext:
    """How workers start: copies of one process that loaded modules for all of them, where a fork is safe.

    That process does nothing else, and only modules are loaded in it that start no threads, which a fork does
    not copy: torch and timm do not, polars does. It never touches a GPU.

    Parameters
    ----------
    modules
        What it loads. It stays until this process ends, so that the first to ask decides.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context


def take_environment(environment: Mapping[str, str]) -> None:
    """Take over the parent's environment: what this process is a copy of may be older than its settings."""
    os.environ.clear()
    os.environ.update(environment)


@contextmanager
def without_main_module() -> Iterator[None]:
    """Start processes that do not import the user's script again.

    They need nothing of it; and a script that calls this library without ``if __name__ == "__main__"``, as
    the code of a notebook does, would run as a whole in every worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def end_with_parent() -> None:
    """End this worker once its parent is gone, however that ended: another run may have taken over."""
    threading.Thread(target=_wait_for_parent, name="parent", daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
