"""Micrometres per pixel of a slide: from every source that knows it, which must agree."""

from __future__ import annotations

from dataclasses import dataclass

from mmap_st.data import CohortSlide, Spots, mpp_from_pitch
from mmap_st.errors import ResolutionError

_LARGEST_DISAGREEMENT = 0.05


@dataclass(frozen=True)
class SourceMpp:
    """Micrometres per level-0 pixel, and the source that gave it."""

    mpp: float
    source: str


@dataclass(frozen=True)
class KnownMpp:
    """What one source says.

    Attributes
    ----------
    mpp
        Micrometres per pixel.
    key
        The source, as the cohort's column `mpp_from` names it.
    source
        The same for people, short.
    shown
        Value and source for people, with its uncertainty where there is one.
    """

    mpp: float
    key: str
    source: str
    shown: str


def known_mpps(row: CohortSlide, image_mpp: float | None, spots: Spots | None) -> tuple[KnownMpp, ...]:
    """What each source that knows a slide's micrometres per pixel says, the most trusted first.

    Parameters
    ----------
    row
        The cohort's row; it may give a value.
    image_mpp
        From the image's metadata.
    spots
        The slide's spots; their files may state a value, and their pitch may give one.
    """
    known: list[KnownMpp] = []
    if row.mpp is not None:
        known.append(KnownMpp(row.mpp, "cohort", "cohort", f"{row.mpp:.4g} (given in the cohort)"))
    pitch = None if spots is None else mpp_from_pitch(spots)
    if pitch is not None:
        shown = f"{pitch.mpp:.4g} +- {pitch.standard_error:.1g} (from the distance between its spots)"
        known.append(KnownMpp(pitch.mpp, "pitch", "spot pitch", shown))
    if spots is not None and spots.mpp is not None:
        shown = f"{spots.mpp:.4g} (from the files of its spots)"
        known.append(KnownMpp(spots.mpp, "spots", "spot files", shown))
    if image_mpp is not None:
        shown = f"{image_mpp:.4g} (from the image's metadata)"
        known.append(KnownMpp(image_mpp, "image", "image metadata", shown))
    return tuple(known)


def choose_mpp(known: tuple[KnownMpp, ...], believed: str | None = None) -> SourceMpp:
    """The most trusted value; or that of the source that the cohort's column `mpp_from` says to believe.

    Raises
    ------
    ResolutionError
        If none is known, or two differ by more than 5% and the cohort does not say which to believe.
    """
    if believed is not None:
        known = tuple(one for one in known if one.key == believed)
        if not known:
            raise ResolutionError(
                f"the cohort's mpp_from says {believed}, which does not know its micrometres per pixel."
            )
    if not known:
        raise ResolutionError(
            "its micrometres per pixel are not known; give them in the cohort's column mpp."
        )
    values = [one.mpp for one in known]
    if max(values) / min(values) - 1 > _LARGEST_DISAGREEMENT:
        raise ResolutionError(
            "its micrometres per pixel disagree by more than 5%: "
            + " against ".join(one.shown for one in known)
            + "; correct what is wrong, or say in the cohort's column mpp_from which to believe"
            f" ({', '.join(one.key for one in known)})."
        )
    # Six significant digits are what the recipe compares; use the same number everywhere.
    return SourceMpp(float(f"{known[0].mpp:.6g}"), known[0].source)


def resolve_source_mpp(row: CohortSlide, image_mpp: float | None, spots: Spots | None) -> SourceMpp:
    """`choose_mpp` of `known_mpps`: what a slide's micrometres per pixel are.

    Raises
    ------
    ResolutionError
        If none is known, or they contradict each other.
    """
    return choose_mpp(known_mpps(row, image_mpp, spots), row.mpp_from)
