"""How far an extraction is, seen from any machine: by what is in the store and next to it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from mmap_st.data import Cohort, CohortSlide
from mmap_st.data.readers import read_spots
from mmap_st.errors import SlideError, StoreError
from mmap_st.extract.engine.planning import has_spots
from mmap_st.extract.slides import GridRequest
from mmap_st.extract.store import (
    FeatureStore,
    LockHolder,
    StoredSlide,
    encode_name,
    failure_of,
    is_nonempty,
    journal_path,
    lease_holder,
    lock_holder,
    rows_in_journal,
    undamaged_slide,
)
from mmap_st.extract.windows import mpp_key
from mmap_st.urls import Place, Url

#: States of a slide.
STATES = DONE, IN_FLIGHT, FAILED, LEFT, SKIPPED = "done", "in flight", "failed", "left", "skipped"


@dataclass(frozen=True)
class SlideStatus:
    """How far one slide is.

    Attributes
    ----------
    state
        ``done``, ``in flight``, ``failed``, ``left`` or ``skipped`` (no image or no spots).
    finished, windows
        Windows that are safe on disk, and all of them; None: not known before its grid is laid.
    holder
        Who embeds it.
    reason
        Why it failed when it was last tried.
    rate
        Windows a second at which it was embedded; None: it is not done, or that was not recorded.
    """

    slide: str
    state: str
    finished: int = 0
    windows: int | None = None
    holder: LockHolder | None = None
    reason: str = ""
    rate: float | None = None


@dataclass(frozen=True)
class ExtractionStatus:
    """How far an extraction is.

    Attributes
    ----------
    slides
        All slides of the cohort.
    begun
        Whether there is a store.
    """

    slides: tuple[SlideStatus, ...]
    begun: bool = True

    def of(self, state: str) -> tuple[SlideStatus, ...]:
        """The slides in one state."""
        return tuple(slide for slide in self.slides if slide.state == state)

    @property
    def rate(self) -> float | None:
        """Windows a second: of a slide that is done, times those in flight; None: none is, or not known."""
        known = [slide.rate for slide in self.slides if slide.rate]
        return median(known) * len(self.of(IN_FLIGHT)) if known and self.of(IN_FLIGHT) else None

    @property
    def windows_left(self) -> int | None:
        """Windows that are still to be embedded; slides of unknown size count as the others on average."""
        wanted = [slide for slide in self.slides if slide.state in (LEFT, IN_FLIGHT)]
        known = [slide.windows for slide in self.slides if slide.windows is not None]
        if wanted and not known:
            return None
        mean = sum(known) / len(known) if known else 0.0
        left = (mean if slide.windows is None else slide.windows - slide.finished for slide in wanted)
        return round(sum(left))

    @property
    def seconds_left(self) -> float | None:
        """How long it takes at this rate; None: not known."""
        left, rate = self.windows_left, self.rate
        return None if left is None or not rate else left / rate


def extraction_status(
    cohort: Cohort, path: Place, encoder: str, mpps: Sequence[float], grid: GridRequest | None = None
) -> ExtractionStatus:
    """Look how far an extraction is; nothing is embedded, and no image is opened.

    Parameters
    ----------
    cohort, path, encoder, mpps, grid
        As of the extraction: the path of the store, and the name that the encoder has in it.

    Raises
    ------
    StoreError
        If there is something else than a feature store at `path`.
    """
    exists = is_nonempty(path) if isinstance(path, Url) else path.exists()
    store = FeatureStore.open(path) if exists else None
    slides = tuple(_status(row, store, path, encoder, mpps, grid) for row in cohort.slides)
    return ExtractionStatus(slides, exists)


def _status(
    row: CohortSlide,
    store: FeatureStore | None,
    path: Place,
    encoder: str,
    mpps: Sequence[float],
    grid: GridRequest | None,
) -> SlideStatus:
    name, key = row.slide, encode_name(row.slide)
    slide = None if store is None else undamaged_slide(store, name)
    spots = _spots_of(row, slide)
    windows = None if spots is None else spots * len(mpps)
    complete = set() if slide is None else {one.mpp for one in slide.undamaged(encoder) if one.complete}
    if complete.issuperset(mpps):
        return SlideStatus(name, DONE, windows or 0, windows, rate=_rate_of(slide, encoder))
    finished = len(complete & set(mpps)) * (spots or 0)
    finished += sum(_finished(path, key, encoder, mpp, slide) for mpp in mpps if mpp not in complete)
    holder = lease_holder(path, key) if isinstance(path, Url) else lock_holder(path, key)
    if holder is not None:
        return SlideStatus(name, IN_FLIGHT, finished, windows, holder)
    if (failure := failure_of(path, name, encoder)) is not None:
        return SlideStatus(name, FAILED, finished, windows, reason=failure.reason)
    if not has_spots(row, grid):
        return SlideStatus(name, SKIPPED)
    return SlideStatus(name, LEFT, finished, windows)


def _spots_of(row: CohortSlide, slide: StoredSlide | None) -> int | None:
    """How many spots a slide has; None where that is not known yet."""
    try:
        if slide is not None and slide.has_spots():
            return len(slide)
        return None if row.spots is None else len(read_spots(row))
    except (SlideError, StoreError):
        return None


def _finished(path: Place, key: str, encoder: str, mpp: float, slide: StoredSlide | None) -> int:
    """Windows of one magnification, which is not complete, that are safe on disk."""
    if isinstance(path, Url):
        return 0  # what is not published is on the machine that embeds it
    in_chunks = 0
    if slide is not None:
        for one in slide.undamaged(encoder):
            if one.mpp == mpp and one.whole:
                in_chunks = len(slide) * one.chunks_done // one.n_chunks
    in_journal = rows_in_journal(journal_path(path, key, encode_name(encoder), mpp_key(mpp)))
    return max(in_chunks, in_journal)


def _rate_of(slide: StoredSlide | None, encoder: str) -> float | None:
    figures = {} if slide is None else slide.telemetry(encoder)
    rate = figures.get("windows_per_s")
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None
