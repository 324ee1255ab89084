"""Workers that are processes of this machine, one for each device."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from mmap_st.extract.encoders import device_of
from mmap_st.extract.engine.encoder_request import EncoderRequest
from mmap_st.extract.engine.planning import ExtractOptions, Planned, usable_cores
from mmap_st.extract.engine.workers.worker import Event, WorkerTask, run_worker
from mmap_st.worker_processes import start_method, without_main_module

_ENDING_S = 10.0


@dataclass(eq=False)
class _Process:
    """A process, and the pipe to it."""

    device: str
    process: BaseProcess
    pipe: Connection

    @property
    def name(self) -> str:
        return f"the process on {self.device}"

    def send(self, plan: Planned | None) -> None:
        with suppress(OSError):
            self.pipe.send(plan)

    def death(self) -> str:
        self.process.join(_ENDING_S)
        code = self.process.exitcode
        return (
            f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
        )


class Processes:
    """See `Workforce`: a process on each of several devices.

    Parameters
    ----------
    request
        The encoder.
    devices
        As torch names them; one may be named more than once.
    store
        Path of the feature store.
    options
        Reading threads and memory are shared out.
    """

    everyone = True
    advice = "name fewer devices"

    def __init__(
        self, request: EncoderRequest, devices: Sequence[str], store: Path, options: ExtractOptions
    ) -> None:
        self._request, self._devices, self._store = request, [device_of(name) for name in devices], store
        self._options = replace(options, processes=len(devices))
        self._context = start_method("torch", "timm")
        self._stopping = self._context.Event()
        self.number = len(devices)

    def start(self, place: int) -> _Process:
        device = self._devices[place]
        mine, theirs = self._context.Pipe()
        task = WorkerTask(
            replace(self._request, device=device),
            self._store,
            self._options,
            max(1, usable_cores() // len(self._devices)),
        )
        level = logging.getLogger("mmap_st").getEffectiveLevel()
        process = self._context.Process(
            target=run_worker,
            args=(theirs, self._stopping, task.to_bytes(), level, dict(os.environ)),
            name=f"embed on {device}",
            daemon=True,
        )
        with without_main_module():
            process.start()
        theirs.close()
        return _Process(device, process, mine)

    def listen(self, links: Sequence[_Process], seconds: float) -> Iterator[tuple[_Process, Event | None]]:
        pipes = {link.pipe: link for link in links}
        for pipe in wait(list(pipes), timeout=seconds):
            assert isinstance(pipe, Connection)
            try:
                event: Event | None = pipe.recv()
            except (EOFError, OSError):
                event = None
            yield pipes[pipe], event

    def stop(self, links: Sequence[_Process]) -> None:
        self._stopping.set()

    def end(self, links: Sequence[_Process], *, at_once: bool) -> None:
        for link in links:
            if at_once:
                link.process.terminate()
            link.pipe.close()  # which ends one that waits for a plan
        for link in links:
            link.process.join(_ENDING_S)
            if link.process.is_alive():
                link.process.kill()
                link.process.join()
