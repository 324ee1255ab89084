"""An extraction run: every spot of every slide of a cohort, at every magnification, into a store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mmap_st.data import Cohort, CohortSlide
from mmap_st.errors import MmapError, StoppedError, counted, of_one_slide, printable
from mmap_st.extract.encoders import EncoderSpec, note_of_scales
from mmap_st.extract.engine.devices import open_engine
from mmap_st.extract.engine.encoder_request import EncoderRequest, check_expected
from mmap_st.extract.engine.engines import Engine, SlideResult
from mmap_st.extract.engine.planning import (
    ExtractOptions,
    PendingSlide,
    Planned,
    PlanRequest,
    check_run_recipe,
    check_some_spots,
    check_width,
    has_spots,
    lacks_image,
    plan_remote,
    plan_slide,
    slides_of_shard,
)
from mmap_st.extract.engine.telemetry import Telemetry
from mmap_st.extract.engine.workers import RayRequest
from mmap_st.extract.slides import GridRequest, default_stage
from mmap_st.extract.store import (
    FeatureStore,
    Publication,
    check_encoder_name,
    check_slide_names,
    forget_failures,
    is_nonempty,
    lost_slides,
    note_failure,
    refuse_read_only,
    refuse_web,
)
from mmap_st.extract.windows import mpp_key
from mmap_st.progress import Progress, Silent
from mmap_st.urls import Place, Url

_LOG = logging.getLogger(__name__)
#: How often it is looked after slides that other jobs embed, and whether to stop meanwhile.
_LOOK_S, _POLL_S = 5.0, 0.2


@dataclass
class ExtractReport:
    """What a run did.

    Attributes
    ----------
    done
        Slides that are complete now, and had something to do.
    unchanged
        Slides that were complete before.
    elsewhere
        Slides that other jobs completed meanwhile, where slides are claimed.
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
    elsewhere: list[str] = field(default_factory=list)
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


def extract_cohort(
    cohort: Cohort,
    store_path: Place,
    request: EncoderRequest,
    mpps: Sequence[float],
    options: ExtractOptions | None = None,
    progress: Progress | None = None,
    *,
    grid: GridRequest | None = None,
    ray: RayRequest | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> ExtractReport:
    """Embed every spot of a cohort.

    Parameters
    ----------
    cohort
        Slides; rows that name no image, or no spots where no grid is requested, are skipped.
    store_path
        Folder of the feature store, or its URL in an object store; made where there is none.
    request
        The encoder; see `auto_precision` for what ``auto`` means.
    mpps
        Micrometres per pixel of the windows, finest first.
    options, progress
        How, and who listens.
    grid
        Laid on the tissue of slides that have no spot table; the others keep their own spots.
    ray
        Embed by actors of Ray; None: by this machine, without it.
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
    refuse_web(store_path)
    if isinstance(store_path, Url):
        publication = Publication.of(store_path, options.stage.folder if options.stage else None)
        options, folder = replace(options, publish=publication), publication.folder
    else:
        refuse_read_only(store_path)
        folder = store_path
    check_slide_names(folder, cohort.names)
    check_some_spots(cohort, grid)
    if ray is None and options.stage is None and any(isinstance(row.image, Url) for row in cohort.slides):
        default_stage()  # if it cannot be used, no slide can
    rows = cohort.slides
    if options.shard is not None:
        rows = slides_of_shard(cohort, options.shard)
        progress.note(f"shard {options.shard}: {counted(len(rows), 'slide')}")
    there = FeatureStore.open(store_path) if is_nonempty(store_path) else None
    with open_engine(request, there, folder, options, stop, ray, len(rows)) as engine:
        check_expected(request, engine.recipe)
        # A store is made only now that the request is known to be one that can be met.
        written = FeatureStore.create(folder) if options.publish is None else options.publish.created()
        store = written if options.publish is None else FeatureStore.open(store_path)
        report = _extract(rows, store, written, engine, request.spec, mpps, options, progress, grid, stop)
    _LOG.info("all slides: %s", report.telemetry)
    return report


def _extract(
    rows: Sequence[CohortSlide],
    store: FeatureStore,
    written: FeatureStore,
    engine: Engine,
    spec: EncoderSpec,
    mpps: Sequence[float],
    options: ExtractOptions,
    progress: Progress,
    grid: GridRequest | None,
    stop: Callable[[], bool],
) -> ExtractReport:
    """Plan all slides by what is in the store, and embed them with an engine that is ready."""
    if not options.overwrite:
        check_run_recipe(store, engine.recipe)
    replaced = {(row.slide, mpp) for row in rows for mpp in mpps} if options.overwrite else set()
    check_width(store, spec.name, engine.width, replaced)

    wanted = PlanRequest(engine.recipe, tuple(mpps), options.overwrite, grid, options.enlarge)

    def plan(row: CohortSlide) -> Planned:
        plan_one = plan_remote if isinstance(row.image, Url) else plan_slide
        return plan_one(row, store, wanted)

    report = ExtractReport()
    plans = _plan_all(rows, plan, grid, report, progress, stop)
    if grid is not None and (report.gridded or not report.failed):
        own = sum(row.image is not None and row.spots is not None for row in rows)
        pending = sum(isinstance(plan, PendingSlide) and plan.row.spots is None for plan in plans)
        given = counted(len(report.gridded) + pending, "slide gets", "slides get")
        having = "; " + counted(own, "has spots of its own", "have spots of their own") if own else ""
        progress.note(f"{given} the spots of {grid}{having}")
    listener = _Listener(progress, {plan.name: plan.windows for plan in plans})
    progress.start(len(plans), sum(listener.windows.values()))
    if plans and (scales := note_of_scales(spec, mpps)):
        progress.note(scales)
    _note_enlarged(plans, {}, progress)
    left = _embed(plans, engine, written, options, report, listener)
    by_name = {row.slide: row for row in rows}
    while left:
        # Other jobs have these. What they complete is done; what they leave, since they died, is ours.
        progress.show_details(f"waiting for {counted(len(left), 'slide')} that other jobs embed")
        _wait(stop)
        again = []
        store.refresh()
        for before in left:
            try:
                now = plan(by_name[before.name])
            except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
                _fail(report, before.name, of_one_slide(error))
                continue
            if isinstance(now, PendingSlide) or now.recipes:
                again.append(now)
            else:
                report.elsewhere.append(before.name)
                progress.advance(listener.windows[before.name])
        left = _embed(again, engine, written, options, report, listener)
    here = report.done + report.unchanged + report.elsewhere
    report.failed |= lost_slides(store.path, here, spec.name, mpps)
    for names in (report.done, report.unchanged, report.elsewhere):
        names[:] = [name for name in names if name not in report.failed]
    report.telemetry.end()
    for name, reason in report.failed.items():
        note_failure(store.path, name, spec.name, reason)
    forget_failures(store.path, here, spec.name)
    return report


def _plan_all(
    rows: Sequence[CohortSlide],
    plan: Callable[[CohortSlide], Planned],
    grid: GridRequest | None,
    report: ExtractReport,
    progress: Progress,
    stop: Callable[[], bool],
) -> list[Planned]:
    """What is to be done; slides with nothing to do, or that cannot be used, go to the report."""
    plans: list[Planned] = []
    for row in rows:
        if stop():
            raise StoppedError("stopped before the first slide")
        if not has_spots(row, grid) and not lacks_image(row):
            report.skipped_slides.append(row.slide)
            continue
        progress.show_details(f"looking at {row.slide}")
        try:
            planned = plan(row)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
            _fail(report, row.slide, of_one_slide(error))
            continue
        if isinstance(planned, PendingSlide):
            plans.append(planned)
            continue
        if planned.made_by is not None:
            report.gridded.append(row.slide)
        if planned.recipes:
            plans.append(planned)
        else:
            report.unchanged.append(row.slide)
    return plans


def _embed(
    plans: Sequence[Planned],
    engine: Engine,
    store: FeatureStore,
    options: ExtractOptions,
    report: ExtractReport,
    listener: _Listener,
) -> list[Planned]:
    """Embed slides; return those that are another job's, where slides are claimed."""
    left = []
    by_name = {plan.name: plan for plan in plans}
    late: dict[str, float] = {}
    for result in engine.embed(plans, store, listener):
        if result.of_another and options.claim:
            left.append(by_name[result.name])
            continue
        _count(result, report, listener)
        if isinstance(by_name[result.name], PendingSlide):
            if result.gridded:
                report.gridded.append(result.name)
            if result.source_mpp is not None:
                late[result.name] = result.source_mpp
    if late:
        _note_enlarged(plans, late, listener.progress)
    return left


def _wait(stop: Callable[[], bool]) -> None:
    """Wait a little, before it is seen what other jobs have done.

    Raises
    ------
    StoppedError
        If `stop` requests it.
    """
    until = time.monotonic() + _LOOK_S
    while time.monotonic() < until:
        if stop():
            raise StoppedError("stopped while waiting for other jobs")
        time.sleep(_POLL_S)


@dataclass
class _Listener:
    """Shows the progress of engines.

    Attributes
    ----------
    windows
        Of each slide, as far as that is known.
    """

    progress: Progress
    windows: dict[str, int]

    def slide_planned(self, name: str, windows: int) -> None:
        self.windows[name] = windows
        self.progress.set_total(sum(self.windows.values()))

    def slide_started(self, name: str, finished: int) -> None:
        self.progress.start_item(name)
        self.progress.advance(finished)

    def windows_written(self, name: str, windows: int, details: str) -> None:
        self.progress.advance(windows)
        self.progress.show_details(details)


def _count(result: SlideResult, report: ExtractReport, listener: _Listener) -> None:
    if result.unchanged:
        report.unchanged.append(result.name)
        listener.slide_planned(result.name, 0)
        return
    if result.telemetry is not None:
        report.telemetry.add(result.telemetry)
    if result.failure is not None:
        report.failed[result.name] = result.failure
        return
    report.done.append(result.name)
    for mpp, windows in result.unreadable.items():
        listener.progress.note(
            f"{result.name}: {counted(windows, 'window')} at {mpp_key(mpp)} um/px cannot be read"
        )
    report.invalid += sum(result.unreadable.values())
    report.skipped_windows += result.skipped_windows


def _note_enlarged(plans: Sequence[Planned], late: Mapping[str, float], progress: Progress) -> None:
    """Say so where windows are finer than the slides: allowed, but they hold no more than the slide does.

    Of slides that are planned when they are opened it is said afterwards, by the scales in `late`.
    """
    affected: dict[float, dict[str, float]] = {}
    for plan in plans:
        if isinstance(plan, PendingSlide):
            mpps, scale = plan.request.mpps, late.get(plan.name, 0.0)
        else:
            mpps, scale = tuple(plan.recipes), 0.0 if late else plan.source.mpp
        for mpp in mpps:
            if mpp < scale * 0.999:
                affected.setdefault(mpp, {})[plan.name] = scale
    for mpp, scales in sorted(affected.items()):
        least, most = min(scales.values()), max(scales.values())
        one = len(scales) == 1
        whose = printable(next(iter(scales))) if one else f"{len(scales)} of {len(plans)} slides"
        shown = f"{least:.4g}" if one else f"{least:.4g} to {most:.4g}"
        progress.note(
            f"windows at {mpp_key(mpp)} um/px are finer than the pixels of {whose} ({shown} um/px) and are"
            f" enlarged{'' if one else ', up to'} {most / mpp:.2f} times"
        )


def _fail(report: ExtractReport, name: str, error: MmapError) -> None:
    _LOG.info("slide %s failed: %s", printable(name), error)
    report.failed[name] = str(error)
