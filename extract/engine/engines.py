"""Engines: where slides are embedded. All of them embed by the same plans, sessions and store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mmap_st.errors import SlideDoneError, SlideLockedError, SlideUnchangedError, printable
from mmap_st.extract.encoders import Encoder
from mmap_st.extract.engine.pipeline import embed_slides
from mmap_st.extract.engine.planning import ExtractOptions, Planned, run_recipe
from mmap_st.extract.engine.session import Outcome, SlideSession, open_session
from mmap_st.extract.engine.telemetry import Telemetry
from mmap_st.extract.store import FeatureStore, Recipe
from mmap_st.extract.windows import DeviceResizer

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlideResult:
    """How a slide ended, in numbers and words alone: what one process tells another.

    Attributes
    ----------
    name
        Of the slide.
    failure
        Why it is not done; None where it is.
    telemetry
        None where it could not be opened.
    unreadable
        Windows that cannot be read, by um/px.
    skipped_windows
        That show too little tissue.
    of_another
        Whether another job has it in hand, or has completed it meanwhile.
    unchanged
        Whether all was there before, which only its image could tell.
    gridded
        Whether its spots are a grid on its tissue.
    source_mpp
        Micrometres per level-0 pixel; None where it could not be opened.
    """

    name: str
    failure: str | None
    telemetry: Telemetry | None = None
    unreadable: Mapping[float, int] = field(default_factory=dict)
    skipped_windows: int = 0
    of_another: bool = False
    unchanged: bool = False
    gridded: bool = False
    source_mpp: float | None = None

    @classmethod
    def of(cls, outcome: Outcome) -> SlideResult:
        """What is to be told of an outcome."""
        name, session, failure = outcome.plan.name, outcome.session, outcome.failure
        if isinstance(failure, SlideUnchangedError):
            return cls(name, None, unchanged=True, gridded=failure.gridded)
        if failure is not None:
            _LOG.info("slide %s failed: %s", printable(name), printable(str(failure)))
        if session is None:
            of_another = isinstance(failure, SlideLockedError | SlideDoneError)
            return cls(name, str(failure), of_another=of_another)
        # A copy is gone by now.
        why = None if failure is None else str(failure).replace(str(session.image), str(outcome.plan.image))
        return cls(
            name,
            why,
            session.telemetry,
            {rows.mpp: rows.invalid for rows in session.rows if rows.invalid},
            sum(rows.skipped for rows in session.rows),
            gridded=session.plan.made_by is not None,
            source_mpp=session.plan.source.mpp,
        )


class Listener(Protocol):
    """Whoever wants to know how far slides are."""

    def slide_planned(self, name: str, windows: int) -> None:
        """A slide that was not planned before has so many windows."""

    def slide_started(self, name: str, finished: int) -> None:
        """A slide's first windows are being embedded; this many were finished before."""

    def windows_written(self, name: str, windows: int, details: str) -> None:
        """So many windows more of a slide are safe on disk; a negative number takes some back."""


class Engine(Protocol):
    """Embeds slides with one encoder.

    Attributes
    ----------
    recipe
        What all embeddings of the run share, see `run_recipe`.
    width
        Length of an embedding.
    """

    recipe: Recipe
    width: int

    def embed(
        self, plans: Sequence[Planned], store: FeatureStore, listener: Listener
    ) -> Iterator[SlideResult]:
        """Embed slides, and yield how each ended.

        Raises
        ------
        StoppedError
            If the run was asked to stop; finished batches are saved.
        """


@dataclass
class LocalEngine:
    """Embeds in this process, on one device."""

    encoder: Encoder
    options: ExtractOptions
    stop: Callable[[], bool]

    def __post_init__(self) -> None:
        """Say what the encoder makes."""
        self.recipe = run_recipe(self.encoder, self.options.tissue_min)
        self.width = self.encoder.width

    def embed(
        self, plans: Iterable[Planned], store: FeatureStore, listener: Listener
    ) -> Iterator[SlideResult]:
        """Embed slides in their order."""
        encoder, options, stop = self.encoder, self.options, self.stop

        def on_slide_start(session: SlideSession) -> None:
            if session.planned_now:
                listener.slide_planned(session.name, session.plan.windows)
            listener.slide_started(session.name, session.finished)

        def on_batch_written(session: SlideSession, windows: int) -> None:
            listener.windows_written(session.name, windows, session.telemetry.shares())

        resizer = DeviceResizer.of(encoder.device) if plans and options.resample == "auto" else None
        for outcome in embed_slides(
            plans,
            lambda plan, stop: open_session(plan, store, encoder, options, stop, resizer),
            encoder,
            options.threads,
            on_slide_start=on_slide_start,
            on_batch_written=on_batch_written,
            stop=stop,
        ):
            yield SlideResult.of(outcome)
