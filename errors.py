"""Exceptions of the project, by what a failure means for the rest of the work.

Every message is one sentence for a person: what is wrong, where, and what to do.
"""

from __future__ import annotations

import difflib
import logging
import re
import signal
import unicodedata
from collections.abc import Iterable, Mapping

# Joiners are letters' own business in Persian, in Indian scripts and in emoji.
_JOINERS = "\u200c\u200d"
# Controls, halves of characters (of file names that are not UTF-8), and separators of lines.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: str, *, lines: bool = False) -> str:
    r"""A text in which nothing is a command to a terminal, and nothing is hidden or reordered.

    Names come from files of others. Everything that is shown passes through here: escape sequences, line ends
    and marks that turn the direction of writing are shown as ``\x1b``, ``\r`` or ``\u202e``.

    Parameters
    ----------
    lines
        Whether line ends stay: of a text that has several lines by itself.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _UNSEEN
        and character not in _JOINERS
        and not (lines and character == "\n")
        else character
        for character in text
    )


_LOG = logging.getLogger(__name__)


class MmapError(Exception):
    """Base of every error that this package raises on purpose."""

    def __str__(self) -> str:
        return printable(super().__str__(), lines=True)


class MmapWarning(UserWarning):
    """Something that the user should know; the work continues."""


class SlidesLeftOutWarning(MmapWarning):
    """Some slides failed, or were skipped; the message names them with their reasons."""


class UnlikeTrainingWarning(MmapWarning):
    """Slides that were predicted are unlike anything that the head was trained on."""


class StoppedError(MmapError):
    """The user asked to stop: what is finished is saved, and the same command resumes from there.

    Attributes
    ----------
    signal_number
        Which signal asked for it, where one did.
    """

    signal_number: int = signal.SIGINT


class EvaluationError(MmapError):
    """A cross-validation stopped early: the finished folds are saved (exit status 1)."""


class RequestError(MmapError):
    """The request itself cannot be met: nothing was done (exit status 2)."""


class WriteError(RequestError):
    """Results cannot be written: the disk is full, or may not be written to."""


class SlideError(MmapError):
    """One slide cannot be used: the others are still done (exit status 1)."""


class CohortError(RequestError):
    """A cohort file or folder cannot be understood."""


class PanelError(RequestError):
    """A gene panel cannot be made from what is there."""


class NormalisationError(RequestError):
    """Targets of slides cannot be brought to one scale."""


class SplitError(RequestError):
    """Train, validation and test slides cannot be assigned as requested."""


class EncoderError(RequestError):
    """An encoder is unknown, or cannot be built or loaded."""


class StoreError(RequestError):
    """A feature store is missing, of another kind, or incomplete."""


class RecipeMismatchError(RequestError):
    """The store holds embeddings made with another recipe."""


class HeadError(RequestError):
    """A head is unknown, misconfigured, or does not fit the embeddings."""


class MissingDependencyError(RequestError):
    """An optional package is needed and is not installed."""


class SlidesFailedError(SlideError):
    """Slides failed, and none could be done.

    Attributes
    ----------
    failed
        The reason of each slide.
    """

    def __init__(self, failed: Mapping[str, str]) -> None:
        name, reason = next(iter(failed.items()))
        more = len(failed) - 1
        others = f" (and {counted(more, 'more slide')} failed)" if more else ""
        super().__init__(f"no slide could be done; slide {name}: {reason.rstrip('.')}{others}.")
        self.failed = dict(failed)


class SpotsError(SlideError):
    """A slide's spots are missing, duplicated or not numbers."""


class CountsError(SlideError):
    """A slide's counts are missing or are not counts."""


class NotCountsError(CountsError):
    """A slide's values can be read, and are not counts: they were normalised or scaled."""


class LabelsError(SlideError):
    """A pathologist's labels of a slide cannot be read."""


class ImageError(SlideError):
    """A slide's image is missing or cannot be read."""


class OverviewError(ImageError):
    """An image has damage somewhere, so that it cannot be seen as a whole; windows elsewhere can be read."""


class DeviceError(MmapError):
    """The device cannot continue: what is finished is saved (exit status 1)."""


class DownloadError(MmapError):
    """One file cannot be fetched: the others still are (exit status 1)."""


class UnsuitableImageError(ImageError):
    """An image that can be read and is no H&E picture of 8 bits: another reader is not to make one of it."""


class ImageTooLargeError(UnsuitableImageError):
    """An image declares more pixels than can be decoded here, or than its file can hold."""


class RegionError(MmapError):
    """One region of an image cannot be read; the rest of it may be."""


class ResolutionError(SlideError):
    """A slide's micrometres per pixel are unknown or contradict each other."""


class FeaturesError(SlideError):
    """Embeddings made elsewhere cannot be read, or do not belong to a slide's spots."""


class TissueError(SlideError):
    """A slide has no tissue, or none that a grid of spots fits on."""


class SlideRecipeError(SlideError):
    """A slide's stored embeddings were made from another image, mpp or spots."""


class SlideLockedError(SlideError):
    """Another process is writing this slide."""


class SlideDoneError(SlideError):
    """Another process has completed this slide meanwhile."""


class SlideUnchangedError(SlideError):
    """All that was wanted of a slide is in the store already, which its image had to be fetched to tell.

    Attributes
    ----------
    gridded
        Whether its spots are a grid on its tissue.
    """

    gridded = False


class DamagedSlideError(StoreError, SlideError):
    """What a store holds of one slide is not what was written.

    Parameters
    ----------
    found
        What is wrong, and where.
    advice
        What to do; it follows `found`, and is of no use to a run that does it.
    """

    def __init__(self, found: str, advice: str = "") -> None:
        super().__init__(found + advice)
        self.found = printable(found)


class LinkInStoreError(DamagedSlideError):
    """In a store lies a link, a device or a pipe: it is somebody's, and not to be replaced."""


class RemoteError(StoreError, SlideError):
    """An object store or a web server refuses a request, or does not answer."""


class RefusedError(RemoteError):
    """A server refuses these credentials: it is of no use to ask again."""


#: Errors that end one slide and leave the others.
_OF_ONE_SLIDE = (SlideError, RegionError, StoreError, RecipeMismatchError)


def of_one_slide(error: Exception) -> MmapError:
    """The error that ends one slide; a defect of the program is named as one, and logged."""
    if isinstance(error, _OF_ONE_SLIDE):
        return error
    if isinstance(error, MemoryError):
        too_large: MmapError = ImageError("there is not enough memory for it; close other programs.")
        too_large.__cause__ = error
        return too_large
    _LOG.error("a defect of the program", exc_info=error)
    what = f"{type(error).__name__}: {first_line(error)}"
    defect = ImageError(f"the program failed on it ({what}); please report this with the log.")
    defect.__cause__ = error
    return defect


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def counted(count: int, one: str, many: str | None = None) -> str:
    """A count and what is counted, such as ``"1 slide"`` or ``"3 slides"``.

    Parameters
    ----------
    one, many
        The words that follow 1, and those that follow any other number: a noun, or one with its verb. By
        default `one` with an s.
    """
    return f"{count} {agreeing(count, one, many)}"


def agreeing(count: int, one: str, many: str | None = None) -> str:
    """The words of `counted` without the number: where other words stand between."""
    if count == 1:
        return one
    return f"{one}s" if many is None else many


def in_sentences(messages: Iterable[str]) -> str:
    """Messages of one thing in a row: each after the first begins as a sentence does, unless with a name."""
    first, *others = messages
    begun = [text[0].upper() + text[1:] if re.match("[a-z]+ ", text) else text for text in others]
    return " ".join([first if first.endswith(".") or not begun else f"{first}.", *begun])


def none_of(count: int, one: str) -> str:
    """``"none of the 3 slides"``, and ``"no slide"`` where there is one."""
    return f"no {one}" if count == 1 else f"none of the {counted(count, one)}"


def did_you_mean(word: str, known: Iterable[str], alike: float = 0.5) -> str:
    """Return ``" (did you mean a, b?)"`` with the nearest known words, or ``""``.

    Parameters
    ----------
    alike
        How much of a word, from 0 to 1, its neighbours share with it.
    """
    others = [other for other in known if other != word]
    near = difflib.get_close_matches(word, others, n=3, cutoff=alike)
    return f" (did you mean {', '.join(near)}?)" if near else ""
