"""Engines: where slides are embedded. All of them embed by the same plans, sessions and store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from mmap_st.extract.encoders import Encoder
from mmap_st.extract.engine.pipeline import embed_slides
from mmap_st.extract.engine.plan import ExtractOptions, SlidePlan, run_recipe
from mmap_st.extract.engine.session import SlideResult, SlideSession, open_session
from mmap_st.extract.store import FeatureStore, Recipe
from mmap_st.extract.windows import DeviceResizer


class Listener(Protocol):
    """Whoever wants to know how far slides are."""

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
        self, plans: Sequence[SlidePlan], store: FeatureStore, listener: Listener
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
        self, plans: Iterable[SlidePlan], store: FeatureStore, listener: Listener
    ) -> Iterator[SlideResult]:
        """Embed slides in their order."""
        encoder, options, stop = self.encoder, self.options, self.stop

        def on_slide_start(session: SlideSession) -> None:
            listener.slide_started(session.name, session.finished)

        def on_batch_written(session: SlideSession, windows: int) -> None:
            listener.windows_written(session.name, windows, session.telemetry.shares())

        resizer = DeviceResizer.of(encoder.device) if plans and options.resample == "auto" else None
        for outcome in embed_slides(
            plans,
            lambda plan: open_session(plan, store, encoder, options, stop, resizer),
            encoder,
            options.threads,
            on_slide_start=on_slide_start,
            on_batch_written=on_batch_written,
            stop=stop,
        ):
            yield SlideResult.of(outcome)
