"""Micrometres per pixel of a slide: from every source that knows it, which must agree."""

from __future__ import annotations

from dataclasses import dataclass

from mmap_st.data.pitch import MppEstimate
from mmap_st.errors import ResolutionError

_LARGEST_DISAGREEMENT = 0.05


@dataclass(frozen=True)
class SourceMpp:
    """Micrometres per level-0 pixel, and the source that gave it."""

    mpp: float
    source: str


def resolve_source_mpp(given: float | None, metadata: float | None, pitch: MppEstimate | None) -> SourceMpp:
    """Choose a slide's mpp: the cohort's, else that of its spots, else that of the image's metadata.

    Parameters
    ----------
    given
        From the cohort.
    metadata
        From the image.
    pitch
        Fitted to the spots.

    Raises
    ------
    ResolutionError
        If none is known, or two differ by more than 5%.
    """
    known: list[tuple[float, str, str]] = []
    if given is not None:
        known.append((given, "cohort", f"{given:.4g} (given in the cohort)"))
    if pitch is not None:
        shown = f"{pitch.mpp:.4g} +- {pitch.standard_error:.1g} (from the distance between its spots)"
        known.append((pitch.mpp, "spot pitch", shown))
    if metadata is not None:
        known.append((metadata, "image metadata", f"{metadata:.4g} (from the image's metadata)"))
    if not known:
        raise ResolutionError(
            "its micrometres per pixel are not known; give them in the cohort's column mpp."
        )
    values = [mpp for mpp, _, _ in known]
    if max(values) / min(values) - 1 > _LARGEST_DISAGREEMENT:
        raise ResolutionError(
            "its micrometres per pixel disagree by more than 5%: "
            + " against ".join(shown for _, _, shown in known)
            + "; correct the cohort's column mpp, the image or the spots."
        )
    mpp, source, _ = known[0]
    # Six significant digits are what the recipe compares; use the same number everywhere.
    return SourceMpp(float(f"{mpp:.6g}"), source)
