"""Embed the spots of a cohort into a feature store; Ctrl-C and SIGTERM stop it between two batches."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mmap_st.data.readers import CohortSource
from mmap_st.errors import RequestError, SlidesFailedError, StoppedError, counted, printable
from mmap_st.extract.engine import (
    EncoderRequest,
    ExtractionStatus,
    ExtractOptions,
    ExtractReport,
    extract_cohort,
    extraction_status,
    parse_engine,
    parse_shard,
)
from mmap_st.extract.slides import parse_grid, stage_of
from mmap_st.extract.store import FeatureStore
from mmap_st.urls import Url, place_of
from mmap_st.workflows.arguments import (
    EncoderLike,
    Scales,
    StoreLike,
    check_store_out,
    encoder_name,
    mpps_of,
    read_cohort,
    spec_of,
)
from mmap_st.workflows.display import show_progress, warn_left_out

_NO_SCALES = "Give --magnifications, such as 20,10,5, or --mpp, such as 0.5,1,2."
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether the user asked to stop; a second signal stops at once.

    Python raises KeyboardInterrupt wherever the main thread happens to be. Between threads that is inside of
    a lock now and then, which then stays locked, and the program hangs instead of ending. Outside of the main
    thread signals cannot be handled: they stay as they are, and the function is always False.

    Raises
    ------
    StoppedError
        Where the work ends with one; it then has the number of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, receive) for number in _SIGNALS}
    try:
        yield lambda: bool(received)
    except StoppedError as error:
        if received:
            error.signal_number = received[0]
        raise
    finally:
        restore()


class EmbeddedStore(FeatureStore):
    """A feature store as `embed` returns it: with a report of what was embedded.

    Attributes
    ----------
    report
        Slides that are done, that were complete before, that were skipped and that failed, with reasons;
        windows that could not be read; how long it took.
    """

    def __init__(self, path: str | Path | Url, report: ExtractReport) -> None:
        super().__init__(path)
        self.report = report

    def __repr__(self) -> str:
        failed = len(self.report.failed)
        lost = f"\n  {counted(failed, 'slide')} failed; see .report.failed" if failed else ""
        return printable(super().__repr__() + lost, lines=True)


class NothingEmbeddedError(SlidesFailedError):
    """Slides failed, and none is complete.

    Attributes
    ----------
    report
        As of `EmbeddedStore`.
    """

    def __init__(self, report: ExtractReport) -> None:
        super().__init__(report.failed)
        self.report = report


def embed(
    cohort: CohortSource,
    store: StoreLike,
    *,
    encoder: EncoderLike,
    magnifications: Scales | None = None,
    mpp: Scales | None = None,
    weights: str | Path | None = None,
    random_weights: bool = False,
    trust_remote_code: bool = False,
    input_px: int | None = None,
    tokens: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    workers: int | None = None,
    cache_mb: int | None = None,
    resample: str = "auto",
    chunk: int = 1024,
    overwrite: bool = False,
    tissue_min: float = 0.0,
    spots: str | None = None,
    unchecked: bool = False,
    enlarge: bool = False,
    shard: str | None = None,
    claim: bool = False,
    stage: str | Path | None = None,
    stage_gb: float | None = None,
    engine: str = "local",
    address: str | None = None,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    progress: bool = True,
) -> EmbeddedStore:
    """Embed every spot of every slide at several magnifications.

    What the store has already is not done again, so that the same call resumes a run that was stopped, and
    another one adds slides, encoders or magnifications.

    Parameters
    ----------
    cohort
        A cohort (`read_cohort`), or what `read_cohort` takes.
    store
        A feature store, or the path of one; made where there is none.
    encoder
        By name (`list_encoders`), ``timm:NAME``, ``hf-hub:ORG/NAME``, ``FILE.py:FUNCTION``, or a spec.
    magnifications
        Such as ``[40, 20, 10]``: 40x is 0.25 micrometres per pixel, 20x is 0.5.
    mpp
        The same in micrometres per pixel, such as ``[0.25, 0.5, 1.0]``. Give one of the two.
    weights
        File or folder of the encoder's weights. None: those that are configured, cached or fetched.
    random_weights
        Take random weights, to try an encoder without its own.
    trust_remote_code
        Run code that the encoder's hub repository carries.
    input_px
        Side of the windows in pixels, for encoders that take other sizes than their default.
    tokens
        Store a grid of ``tokens`` x ``tokens`` patch tokens per spot too. None: as the store does.
    batch_size
        Windows that are embedded together. None: 32 on a CPU, 256 on a GPU.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; several with commas between them, or ``all`` GPUs:
        a process on each, and slides from one queue.
    precision
        ``fp32``, ``bf16``, ``fp16``, or ``auto``: as the store has it, else bf16 on devices that are fast at
        it.
    compile
        Let torch compile the network: slower to start, then faster.
    workers
        Threads that read windows. None: one per CPU core, up to 16.
    cache_mb
        Memory for the decoded tiles of one slide, in MiB; up to three slides are in progress at once. None:
        what keeps all workers busy, from 256 to an eighth of the free memory.
    resample
        Where windows are resized: ``auto``, on the GPU that embeds them if it makes the same pixels, to the
        bit; or ``cpu``.
    chunk
        Rows of a chunk of the store.
    overwrite
        Replace what another recipe made, and try unreadable windows of finished slides again.
    tissue_min
        Leave out windows with a smaller share of tissue, from 0 to 1.
    spots
        For slides without spots: ``grid:100`` or ``hex:100`` lays spots 100 micrometres apart on the tissue.
    unchecked
        Embed spots also where they would fit the tissue better by at least 20% of them if x and y were
        swapped, or if they were mirrored, turned or scaled. False: such slides fail.
    enlarge
        Embed windows also of slides so coarse that they are enlarged more than 4 times. False: such slides
        fail.
    shard
        ``i/n``, i from 0 to n - 1: embed this part of the cohort's slides only, so that n jobs share them.
    claim
        Leave slides that another job is embedding to it, and wait for them in the end: any number of jobs
        with this may work on one store. False: such slides fail.
    stage
        Folder on a local disk that each slide is copied to while it is embedded, the next one meanwhile; for
        slides on network drives, where many small reads take long, and for slides by URL. None: slides are
        read where they lie, and those by URL are fetched to a folder of the cache.
    stage_gb
        Gigabytes that slides may take there at a time, of all processes together. None: half of what is free.
    engine
        ``local``: this machine embeds. ``ray``: actors of Ray do, on this machine or on a cluster.
    address
        Of a Ray cluster, or ``auto``, for ``engine="ray"``. None: the one that this process is connected to;
        else Ray is started on this machine.
    actors
        How many actors embed. None: as many as the cluster has GPUs for, or CPUs where it has no GPU.
    gpus_per_actor
        GPUs that each asks for, which may be a part of one, such as 0.5. None: one where the cluster has any,
        unless `device` is ``cpu``. `workers` are the CPUs that each asks for.
    progress
        Whether to show it.

    Returns
    -------
    The store, to be read. Its ``report`` says what was done.

    Warns
    -----
    SlidesLeftOutWarning
        If some slides failed; it gives their reasons. The others are embedded.

    Raises
    ------
    RequestError
        If nothing can be done: no such encoder, no weights, or a store made with another recipe.
    SlidesFailedError
        If slides failed and none is complete; it gives their reasons.
    StoppedError
        If Ctrl-C or SIGTERM stopped it; what is finished is saved, and the same call resumes from there.

    Examples
    --------
    >>> store = mm.embed(cohort, folder / "new.zarr", encoder="efficientnet-lite0", mpp=1.0, progress=False)
    >>> store.report.done
    ['A1', 'B1', 'C1']
    >>> store["A1"].embedding("efficientnet-lite0", mpp=1.0).shape[1]
    1280
    """
    mpps = mpps_of(magnifications, mpp)
    grid = None if spots is None else parse_grid(spots)
    if mpps is None:
        raise RequestError(_NO_SCALES)
    local = stage_of(stage, stage_gb)
    ray = parse_engine(engine, address, actors, gpus_per_actor, device)
    path = store.path if isinstance(store, FeatureStore) else place_of(store)
    check_store_out(path)
    slides = read_cohort(cohort)
    spec = spec_of(encoder)
    if input_px is not None:
        spec = spec.with_input(input_px)
    request = EncoderRequest(
        spec,
        None if weights is None else Path(weights),
        random_weights,
        device,
        precision,
        compile,
        tokens,
        trust_remote_code,
    )
    if resample not in ("auto", "cpu"):
        raise RequestError(f"--resample {printable(resample)} is not known; give auto or cpu.")
    options = ExtractOptions(
        batch_size, workers, chunk, overwrite, cache_mb, tissue_min, unchecked, enlarge, resample,
        shard=None if shard is None else parse_shard(shard), claim=claim,
        stage=local,
    )  # fmt: skip
    with show_progress(progress) as display, stop_on_signals() as stop:
        display(f"preparing {spec.name}")
        report = extract_cohort(slides, path, request, mpps, options, display, grid=grid, ray=ray, stop=stop)
    if report.failed and not report.done and not report.unchanged and not report.elsewhere:
        raise NothingEmbeddedError(report)
    warn_left_out(report.failed, report.skipped_slides, "the cohort names no image, or no spots, for it")
    return EmbeddedStore(path, report)


def embedding_status(
    cohort: CohortSource,
    store: StoreLike,
    *,
    encoder: EncoderLike,
    magnifications: Scales | None = None,
    mpp: Scales | None = None,
    spots: str | None = None,
) -> ExtractionStatus:
    """How far `embed` is with the same arguments, in whichever processes and on whichever machines it runs.

    Raises
    ------
    RequestError
        If there is something else than a feature store, or no magnification is given.
    """
    mpps = mpps_of(magnifications, mpp)
    if mpps is None:
        raise RequestError(_NO_SCALES)
    path = store.path if isinstance(store, FeatureStore) else place_of(store)
    grid = None if spots is None else parse_grid(spots)
    return extraction_status(read_cohort(cohort), path, encoder_name(encoder), mpps, grid)
