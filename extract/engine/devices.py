"""The devices of a run, and the engine that embeds on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mmap_st.errors import RequestError, printable
from mmap_st.extract.engine.encoder_request import EncoderRequest, build_requested
from mmap_st.extract.engine.engines import Engine, LocalEngine
from mmap_st.extract.engine.planning import ExtractOptions
from mmap_st.extract.engine.workers import Processes, RayRequest, WorkerEngine
from mmap_st.extract.store import FeatureStore


def devices_of(text: str) -> tuple[str, ...]:
    """The devices that ``--device`` names: one, several with commas between them, or ``all`` GPUs.

    Raises
    ------
    RequestError
        If one is named by nothing, or there is no GPU for ``all``.
    """
    if text.strip() == "all":
        import torch

        if not torch.cuda.is_available():
            raise RequestError("--device all: torch sees no GPU here; give cpu, or auto.")
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise RequestError(
            f"--device {printable(text)}: give devices with commas between, as in cuda:0,cuda:1."
        )
    return names


@contextmanager
def open_engine(
    request: EncoderRequest,
    store: FeatureStore | None,
    path: Path,
    options: ExtractOptions,
    stop: Callable[[], bool],
    ray: RayRequest | None,
    slides: int,
) -> Iterator[Engine]:
    """Get an engine ready, of one process, of several or of a cluster's actors, and end it.

    Parameters
    ----------
    request
        The encoder, and the devices.
    store
        What is there of the store already; None: nothing.
    path
        Where the store is, or will be.
    ray
        Which actors of Ray embed; None: this machine does, without it.
    slides
        How many there are at most.
    """
    if ray is not None:
        from mmap_st.extract.engine.workers import open_actors

        with (
            open_actors(ray, request, path, options, slides) as actors,
            WorkerEngine(actors, stop, claim=options.claim) as engine,
        ):
            yield engine
        return
    devices = devices_of(request.device)
    if len(devices) == 1:
        request = replace(request, device=devices[0])
        yield LocalEngine(build_requested(request, store, options), options, stop)
        return
    processes = Processes(request, devices, path, options)
    with WorkerEngine(processes, stop, claim=options.claim) as several:
        yield several
