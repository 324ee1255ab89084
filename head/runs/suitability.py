"""Whether a slide is like those that a head was trained on, in words and with reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.store import StoredSlide, enlargement
from mmap_st.extract.windows import mpp_key
from mmap_st.head.domain import Domain, Strangeness
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.joined import JoinedDomain
from mmap_st.head.neighbourhood import spot_pitch
from mmap_st.head.runs.spatial_metadata import nominal_pitch

LIKE = "like the training tissue"
FAR = "far from the training tissue"
UNLIKE = "unlike anything it was trained on"
# Pitches, and enlargements, that differ by more than this make a difference.
_ANOTHER = 1.5
_LEAST_TISSUE = 0.05


@dataclass(frozen=True)
class TrainingSlides:
    """What head.json says of the slides that a head was trained on.

    Attributes
    ----------
    pitch_um
        Distance between neighbouring spots in micrometres, the mean over slides; None where no slide tells.
    enlarged
        How many times windows were enlarged at most, by um/px.
    """

    pitch_um: float | None = None
    enlarged: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Suitability:
    """Whether a slide is like those that a head was trained on.

    Attributes
    ----------
    verdict
        `LIKE`, `FAR` or `UNLIKE`.
    reasons
        For the latter two.
    strangeness
        How far its spots lie from the training tissue; None where the head does not know.
    tissue
        (n,) float32 share of each spot's finest window that is tissue; NaN where nobody looked.
    """

    verdict: str
    reasons: tuple[str, ...]
    strangeness: Strangeness | None
    tissue: NDArray[np.float32]

    @property
    def on_tissue(self) -> NDArray[np.bool_]:
        """(n,) False where a spot's finest window shows next to no tissue."""
        return ~(self.tissue < _LEAST_TISSUE)

    def about(self) -> dict[str, object]:
        """The verdict and what it rests on, for a prediction's file."""
        found: dict[str, object] = {"verdict": self.verdict, "reasons": "; ".join(self.reasons)}
        if self.strangeness is not None:
            found["distance"] = self.strangeness.slide
            found["percentile"] = self.strangeness.slide_percentile
            found["limit"] = self.strangeness.limit
        return found

    @property
    def sentence(self) -> str:
        """The verdict with its reasons."""
        return f"{self.verdict}: {'; '.join(self.reasons)}" if self.reasons else self.verdict


def training_slides(stored: Sequence[StoredSlide], encoder: str, mpps: Sequence[float]) -> TrainingSlides:
    """Describe the slides that a head is trained on."""
    pitches = [pitch for slide in stored if (pitch := pitch_um(slide)) is not None]
    most: dict[str, float] = {}
    for slide in stored:
        for key, times in (enlarged(slide, encoder, mpps) or {}).items():
            most[key] = max(times, most.get(key, 1.0))
    return TrainingSlides(sum(pitches) / len(pitches) if pitches else None, most)


def judge_slide(
    domain: Domain | JoinedDomain | None,
    trained: Mapping[str, TrainingSlides | None],
    stored: StoredSlide,
    slide: HeadSlide,
    mpps: Sequence[float],
) -> Suitability:
    """Compare a slide with those that a head was trained on.

    Parameters
    ----------
    domain
        What the head knows of where they lie; None in runs of earlier versions.
    trained
        What it knows of their scale, by encoder; None in runs of earlier versions. The tissue in the spots'
        windows is that in those of the first encoder.
    """
    strangeness = None if domain is None else domain.judge(slide)
    tissue = stored.complete(next(iter(trained)))[min(mpps)].tissue()
    reasons = [
        reason
        for encoder, known in trained.items()
        if known is not None
        for reason in _other_scale(known, stored, encoder, mpps)
    ]
    other = tuple(dict.fromkeys(reasons))
    if strangeness is None or not strangeness.far:
        return Suitability(UNLIKE if other else LIKE, other, strangeness, tissue)
    times, held_out = f"{strangeness.slide:.1f} times as far", "as held-out training slides"
    if not strangeness.unlike and not other:  # the verdict says from what
        return Suitability(FAR, (f"{times} {held_out}",), strangeness, tissue)
    away = f"{times} from the training tissue {held_out}"
    if strangeness.unlike:
        away += " (look at the image, its um/px, the stain and the species)"
    return Suitability(UNLIKE, (away, *other), strangeness, tissue)


def _other_scale(
    trained: TrainingSlides, stored: StoredSlide, encoder: str, mpps: Sequence[float]
) -> tuple[str, ...]:
    """How a slide's spots or pixels are of another scale than those of training."""
    found = []
    pitch = pitch_um(stored)
    if pitch is not None and trained.pitch_um and not 1 / _ANOTHER < pitch / trained.pitch_um < _ANOTHER:
        found.append(
            f"its spots lie {nominal_pitch(pitch):.0f} um apart, those of training"
            f" {nominal_pitch(trained.pitch_um):.0f} um"
        )
    for key, times in (enlarged(stored, encoder, mpps) or {}).items():
        most = trained.enlarged.get(key, 1.0)
        if times > _ANOTHER * most:
            found.append(f"windows of {key} um/px were enlarged {times:.1f} times, in training {most:.1f}")
    return tuple(found)


def pitch_um(stored: StoredSlide) -> float | None:
    """Distance between neighbouring spots in micrometres; None where it is not known."""
    if stored.source_mpp is None or len(stored) < 2:
        return None
    return spot_pitch(stored.spot_xy()) * stored.source_mpp


def enlarged(slide: StoredSlide, encoder: str, mpps: Sequence[float]) -> dict[str, float] | None:
    """How many times the windows of a slide were enlarged from its pixels, by um/px; None where none was."""
    found = {
        mpp_key(mpp): times
        for mpp, one in slide.complete(encoder).items()
        if mpp in mpps and (times := enlargement(one.recipe)) is not None
    }
    return found or None


def most_enlarged(
    slide: StoredSlide, encoders: Sequence[str], mpps: Sequence[float]
) -> dict[str, float] | None:
    """The same of several encoders, whose windows differ in size: the most of any of them."""
    most: dict[str, float] = {}
    for encoder in encoders:
        for key, times in (enlarged(slide, encoder, mpps) or {}).items():
            most[key] = max(times, most.get(key, times))
    return most or None
