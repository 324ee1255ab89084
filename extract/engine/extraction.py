"""An extraction run: every spot of every slide of a cohort, at every magnification, into a store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmap_st.data import Cohort
from mmap_st.errors import MmapError, RecipeMismatchError, StoppedError, counted, of_one_slide, printable
from mmap_st.extract.encoders import (
    Encoder,
    EncoderSpec,
    auto_precision,
    build_encoder,
    device_of,
    note_of_scales,
)
from mmap_st.extract.engine.pipeline import embed_slides
from mmap_st.extract.engine.placement import check_some_spots, has_spots, lacks_image
from mmap_st.extract.engine.plan import (
    ExtractOptions,
    SlidePlan,
    check_run_recipe,
    check_width,
    plan_slide,
    run_recipe,
    stored_precision,
    stored_tokens,
)
from mmap_st.extract.engine.session import Outcome, SlideSession, Telemetry, open_session
from mmap_st.extract.slides import GridRequest
from mmap_st.extract.store import (
    FeatureStore,
    Recipe,
    check_encoder_name,
    check_slide_names,
    differences,
    head_part,
    is_nonempty,
    lost_slides,
    refuse_packed,
)
from mmap_st.extract.windows import DeviceResizer, mpp_key
from mmap_st.progress import Progress, Silent

_LOG = logging.getLogger(__name__)


@dataclass
class ExtractReport:
    """What a run did.

    Attributes
    ----------
    done
        Slides that are complete now, and had something to do.
    unchanged
        Slides that were complete before.
    skipped_slides
        Slides whose cohort row has no image, or no spots.
    gridded
        Slides whose spots are a grid on their tissue, of those done, kept or failed while embedded.
    failed
        Reason of every slide that could not be done.
    telemetry
        Windows embedded by this run, the time it took, and where that went.
    invalid, skipped_windows
        Windows that could not be read, or show too little tissue, of the slides done.
    """

    done: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    skipped_slides: list[str] = field(default_factory=list)
    gridded: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    telemetry: Telemetry = field(default_factory=Telemetry)
    invalid: int = 0
    skipped_windows: int = 0

    @property
    def windows(self) -> int:
        """Embedded by this run."""
        return self.telemetry.windows


@dataclass(frozen=True)
class EncoderRequest:
    """Which encoder to build, and how; see `build_encoder`.

    Attributes
    ----------
    device, precision
        May be ``auto``.
    tokens
        Side of the grid of tokens to keep; None: what the store has of this encoder.
    expected
        What its recipe must say of the encoder and its weights, since a head was trained with them; None:
        anything.
    """

    spec: EncoderSpec
    weights: Path | None = None
    random_weights: bool = False
    device: str = "auto"
    precision: str = "auto"
    compiled: bool = False
    tokens: int | None = None
    trust_remote_code: bool = False
    expected: Recipe | None = None


def extract_cohort(
    cohort: Cohort,
    store_path: Path,
    request: EncoderRequest,
    mpps: Sequence[float],
    options: ExtractOptions | None = None,
    progress: Progress | None = None,
    *,
    grid: GridRequest | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> ExtractReport:
    """Embed every spot of a cohort.

    Parameters
    ----------
    cohort
        Slides; rows that name no image, or no spots where no grid is requested, are skipped.
    store_path
        Folder of the feature store; made where there is none.
    request
        The encoder; see `auto_precision` for what ``auto`` means.
    mpps
        Micrometres per pixel of the windows, finest first.
    options, progress
        How, and who listens.
    grid
        Laid on the tissue of slides that have no spot table; the others keep their own spots.
    stop
        Asked before each batch; True ends the run there.

    Returns
    -------
    What was done; slides that failed are in it, with their reasons.

    Raises
    ------
    RequestError
        If nothing can be done at all: no such encoder, another recipe, no store, no slide with spots.
    StoppedError
        If `stop` requested it; finished batches are saved.
    """
    options, progress = options or ExtractOptions(), progress or Silent()
    check_encoder_name(request.spec.name)
    refuse_packed(store_path)
    check_slide_names(store_path, cohort.names)
    check_some_spots(cohort, grid)
    store = FeatureStore.open(store_path) if is_nonempty(store_path) else None
    encoder = _build(request, store, options)
    shared = run_recipe(encoder, options.tissue_min)
    _check_expected(request, shared)
    # A store is made only now that the request is known to be one that can be met.
    store = FeatureStore.create(store_path)
    if not options.overwrite:
        check_run_recipe(store, shared)
    replaced = {(row.slide, mpp) for row in cohort.slides for mpp in mpps} if options.overwrite else set()
    check_width(store, request.spec.name, encoder.width, replaced)

    report = ExtractReport()
    plans: list[SlidePlan] = []
    for row in cohort.slides:
        if stop():
            raise StoppedError("stopped before the first slide")
        if not has_spots(row, grid) and not lacks_image(row):
            report.skipped_slides.append(row.slide)
            continue
        progress.show_details(f"looking at {row.slide}")
        try:
            plan = plan_slide(
                row, store, shared, mpps, overwrite=options.overwrite, grid=grid, enlarge=options.enlarge
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
            _fail(report, row.slide, of_one_slide(error))
            continue
        if plan.made_by is not None:
            report.gridded.append(row.slide)
        if plan.recipes:
            plans.append(plan)
        else:
            report.unchanged.append(row.slide)
    if grid is not None and (report.gridded or not report.failed):
        own = sum(row.image is not None and row.spots is not None for row in cohort.slides)
        given = counted(len(report.gridded), "slide gets", "slides get")
        having = "; " + counted(own, "has spots of its own", "have spots of their own") if own else ""
        progress.note(f"{given} the spots of {grid}{having}")
    progress.start(len(plans), sum(plan.windows for plan in plans))
    if plans and (scales := note_of_scales(request.spec, mpps)):
        progress.note(scales)
    for mpp in mpps:
        _note_enlarged(mpp, plans, progress)
    for outcome in _embed(plans, store, encoder, options, progress, stop):
        _count(outcome, report, progress)
    here = report.done + report.unchanged
    report.failed |= lost_slides(store.path, here, encoder.spec.name, mpps)
    report.done = [name for name in report.done if name not in report.failed]
    report.unchanged = [name for name in report.unchanged if name not in report.failed]
    report.telemetry.end()
    _LOG.info("all slides: %s", report.telemetry)
    return report


def _embed(
    plans: Sequence[SlidePlan],
    store: FeatureStore,
    encoder: Encoder,
    options: ExtractOptions,
    progress: Progress,
    stop: Callable[[], bool],
) -> Iterator[Outcome]:
    current: list[SlideSession] = []

    def on_slide_start(session: SlideSession) -> None:
        current[:] = [session]
        progress.start_item(session.name)
        progress.advance(session.finished)

    def on_batch_written(windows: int) -> None:
        progress.advance(windows)
        progress.show_details(current[0].telemetry.shares())

    resizer = DeviceResizer.of(encoder.device) if plans and options.resample == "auto" else None
    return embed_slides(
        plans,
        lambda plan: open_session(plan, store, encoder, options, stop, resizer),
        encoder,
        options.threads,
        on_slide_start=on_slide_start,
        on_batch_written=on_batch_written,
        stop=stop,
    )


def _count(outcome: Outcome, report: ExtractReport, progress: Progress) -> None:
    name, session = outcome.plan.info.name, outcome.session
    if session is not None:
        report.telemetry.add(session.telemetry)
    if outcome.failure is not None:
        _fail(report, name, outcome.failure)
        return
    assert session is not None
    report.done.append(name)
    for rows in session.rows:
        if rows.invalid:
            progress.note(
                f"{name}: {counted(rows.invalid, 'window')} at {mpp_key(rows.mpp)} um/px cannot be read"
            )
        report.invalid += rows.invalid
        report.skipped_windows += rows.skipped


def _build(request: EncoderRequest, store: FeatureStore | None, options: ExtractOptions) -> Encoder:
    device, precision = device_of(request.device), request.precision
    if precision == "auto":
        stored = stored_precision(store, request.spec.name) if store is not None else None
        precision = auto_precision(request.spec, device, stored)
    tokens = request.tokens
    if tokens is None:
        tokens = stored_tokens(store, request.spec.name) if store is not None else 0
    return build_encoder(
        request.spec,
        weights=request.weights,
        random_weights=request.random_weights,
        device=device,
        precision=precision,
        batch_size=options.batch_size,
        compiled=request.compiled,
        tokens=tokens,
        trust_remote_code=request.trust_remote_code,
    )


def check_encoder(request: EncoderRequest, options: ExtractOptions) -> None:
    """Build an encoder, and refuse it where `extract_cohort` would.

    Raises
    ------
    RequestError
        If it cannot be had, or is not the one that was expected.
    """
    _check_expected(request, run_recipe(_build(request, None, options), options.tissue_min))


def _check_expected(request: EncoderRequest, shared: Recipe) -> None:
    """Refuse weights that are not those that a head was trained with, before any image is opened."""
    different = [] if request.expected is None else differences(request.expected, head_part(shared))
    if different:
        raise RecipeMismatchError(
            f"{request.spec.name} as it is here is not what the head was trained with"
            f" ({'; '.join(different)}); give --weights with the weights that it was trained with."
        )


def _note_enlarged(mpp: float, plans: Sequence[SlidePlan], progress: Progress) -> None:
    """Say so where windows are finer than the slides: allowed, but they hold no more than the slide does."""
    affected = [plan for plan in plans if mpp in plan.recipes and mpp < plan.source.mpp * 0.999]
    finer = [plan.source.mpp for plan in affected]
    if finer:
        one = len(finer) == 1
        whose = printable(affected[0].info.name) if one else f"{len(finer)} of {len(plans)} slides"
        scales = f"{min(finer):.4g}" if one else f"{min(finer):.4g} to {max(finer):.4g}"
        progress.note(
            f"windows at {mpp_key(mpp)} um/px are finer than the pixels of {whose} ({scales} um/px) and are"
            f" enlarged{'' if one else ', up to'} {max(finer) / mpp:.2f} times"
        )


def _fail(report: ExtractReport, name: str, error: MmapError) -> None:
    _LOG.info("slide %s failed: %s", printable(name), error)
    report.failed[name] = str(error)
