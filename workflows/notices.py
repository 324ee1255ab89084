"""Warnings to the user of the public functions: never silent, and shown each time."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence

from mmap_st.errors import MmapWarning, SlidesLeftOutWarning

_MOST_SHOWN = 10


def warn_user(text: str, category: type[MmapWarning] = MmapWarning) -> None:
    """Warn, at the line of the user's own code.

    Python shows a warning of the same text and line once only. A cell of a notebook that is run again has the
    same line, so each call here stands for itself.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).split(".")[0] == "mmap_st":
        frame = frame.f_back
    warnings.warn_explicit(text, category, frame.f_code.co_filename, frame.f_lineno)


def warn_left_out(
    failed: Mapping[str, str], skipped: Mapping[str, str] | Sequence[str], why_skipped: str = ""
) -> None:
    """Warn of slides that were not used, with their reasons.

    Parameters
    ----------
    failed
        Reason of each slide.
    skipped
        Reason of each slide, or names alone.
    why_skipped
        The reason where only names are known.
    """
    if failed:
        warn_user(f"{_count(failed, 'failed')}:\n{_list_reasons(failed)}", SlidesLeftOutWarning)
    if skipped:
        reasons = skipped if isinstance(skipped, Mapping) else dict.fromkeys(skipped, why_skipped)
        warn_user(f"{_count(skipped, 'skipped')}:\n{_list_by_reason(reasons)}", SlidesLeftOutWarning)


def _count(slides: Mapping[str, str] | Sequence[str], what: str) -> str:
    return f"1 slide {what}" if len(slides) == 1 else f"{len(slides)} slides {what}"


def _list_by_reason(reasons: Mapping[str, str]) -> str:
    """One line per reason, with the names of its slides."""
    slides: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        slides.setdefault(reason, []).append(name)
    return _list_reasons({", ".join(_shortened(names)): reason for reason, names in slides.items()})


def _shortened(names: Sequence[str]) -> list[str]:
    more = len(names) - _MOST_SHOWN
    return [*names[:_MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])]


def _list_reasons(reasons: Mapping[str, str]) -> str:
    lines = [f"  {name}: {reason}" for name, reason in list(reasons.items())[:_MOST_SHOWN]]
    more = len(reasons) - len(lines)
    return "\n".join([*lines, *([f"  and {more} more"] if more else [])])
