"""Slides: open an image of any kind, agree on its scale, and read regions of any level of its pyramid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmap_st.data import CohortSlide, Spots, mpp_from_pitch
from mmap_st.errors import ImageError, ResolutionError, UnsuitableImageError
from mmap_st.extract.slides.formats import (
    Level,
    OmeZarrSlide,
    OpenSlideSlide,
    PlainSlide,
    TiffSlide,
    dicom_series,
    is_misread_by_openslide,
    is_ome,
    is_ome_zarr,
    ome_mpp_of,
)
from mmap_st.files import is_dicom, refuse_special

_LARGEST_DISAGREEMENT = 0.05
#: Of a slide's image: finer than light resolves, and coarser than tissue can be told by.
_FINEST_MPP, _COARSEST_MPP = 0.05, 20.0


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

    @property
    def plausible(self) -> bool:
        """Whether it can be the scale of a slide; what the user gives, or the spots measure, is believed."""
        return self.key in ("cohort", "pitch") or _FINEST_MPP <= self.mpp <= _COARSEST_MPP

    @property
    def doubt(self) -> str:
        """Why it is not believed."""
        return (
            f"its micrometres per pixel, {self.shown}, are implausible: slides have {_FINEST_MPP:g} to"
            f" {_COARSEST_MPP:g}, so they were likely written in another unit"
        )


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

    Implausible values of files are not used, unless `believed` names their source.

    Raises
    ------
    ResolutionError
        If none is plausible, or two differ by more than 5% and the cohort does not say which to believe.
    """
    doubtful = [one for one in known if not one.plausible and one.key != believed]
    known = tuple(one for one in known if one not in doubtful)
    if believed is not None:
        known = tuple(one for one in known if one.key == believed)
        if not known:
            raise ResolutionError(
                f"the cohort's mpp_from says {believed}, which does not know its micrometres per pixel."
            )
    if not known and doubtful:
        raise ResolutionError(
            f"{doubtful[0].doubt}; give them in the cohort's column mpp, or say {doubtful[0].key} in its"
            " column mpp_from if they are right."
        )
    if not known:
        raise ResolutionError(
            "its micrometres per pixel are not known; give them in the cohort's column mpp (`mmap cohort"
            " --mpp`), or to `mmap predict` as --source-mpp."
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


__all__ = ["Level", "Slide", "open_slide", "slide_files"]

_TIFF_SUFFIXES = (".tif", ".tiff", ".btf")


class Slide(Protocol):
    """An open slide image.

    Attributes
    ----------
    size
        Width and height in level-0 pixels.
    mpp
        Micrometres per pixel from the image's own metadata, or None.
    levels
        Of its pyramid, finest first; one where it has none.
    notes
        What users should know of its file: that it asks to be turned, or has pixels that are not square.
    """

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def mpp(self) -> float | None: ...

    @property
    def levels(self) -> tuple[Level, ...]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def read(self, box: tuple[int, int, int, int], level: int = 0) -> Image.Image:
        """Read x0, y0, x1, y1 in pixels of a level as RGB; white outside. Safe to call from threads.

        Raises
        ------
        RegionError
            If this region cannot be decoded; others may be.
        ImageError
            If the image as a whole cannot be decoded.
        """
        ...

    def read_tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """Decode one tile of a level as (h, w, 3) RGB, cut at the level's edge. Safe to call from threads.

        Raises
        ------
        RegionError
            If this tile cannot be decoded; others may be.
        ImageError
            If the image as a whole cannot be decoded.
        """
        ...

    def read_tiles(self, level: int, places: Sequence[tuple[int, int]]) -> Iterator[NDArray[np.uint8]]:
        """Decode tiles of one block, given by column and row; as `read_tile`, but the block is decoded once.

        Raises
        ------
        RegionError
            If the block cannot be decoded: none of its tiles can.
        ImageError
            If the image as a whole cannot be decoded.
        """
        ...

    def thumbnail(self, longest_px: int) -> Image.Image:
        """The whole slide as RGB, its longer side at most `longest_px`."""
        ...

    def is_transparent(self) -> bool:
        """Whether every pixel is wholly transparent, and so read as white; told from its coarsest level."""
        ...

    def close(self) -> None:
        """Free the image."""
        ...


def open_slide(path: Path) -> Slide:
    """Open a slide.

    OME-Zarr by zarr; OME-TIFF by tifffile, which knows its pyramid and scale; what OpenSlide knows by
    OpenSlide; the rest by Pillow, decoded once into memory, or by tifffile where Pillow cannot.

    Parameters
    ----------
    path
        A file; for DICOM one of its files or the folder that holds them; for OME-Zarr a folder.

    Raises
    ------
    ImageError
        If the file is missing, damaged or no image.
    """
    if not path.exists():
        raise ImageError(f"the image {path} does not exist; correct the path in the cohort.")
    refuse_special(path, ImageError)
    if is_ome_zarr(path):
        return OmeZarrSlide(path)
    file = _one_file(path)
    is_tiff = file.suffix.lower() in _TIFF_SUFFIXES
    ome = is_tiff and is_ome(file)
    if ome:
        try:
            return TiffSlide(file)
        except UnsuitableImageError:
            raise  # OpenSlide would make a grey or black picture of it
        except ImageError:
            if not _known_to_openslide(file):
                raise
    elif is_tiff and is_misread_by_openslide(file):
        return TiffSlide(file)
    try:
        if _known_to_openslide(file):
            return OpenSlideSlide(file, mpp=ome_mpp_of(file) if ome else None)
        return PlainSlide(file)
    except ImageError as refused:
        if not is_tiff or isinstance(refused, UnsuitableImageError):
            raise
        # TIFF has many compressions: tifffile knows more of them than OpenSlide and Pillow.
        try:
            return TiffSlide(file)
        except UnsuitableImageError:
            raise  # it knows what is in it
        except ImageError as reason:
            raise refused from reason


def slide_files(path: Path) -> tuple[Path, ...]:
    """The files that an image is in, sorted: itself, or those of its folder."""
    return tuple(sorted(p for p in path.rglob("*") if p.is_file())) if path.is_dir() else (path,)


def _one_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    dicom = sorted(p for p in path.iterdir() if p.suffix.lower() == ".dcm" or is_dicom(p))
    if not dicom:
        raise ImageError(f"{path} is a folder that holds neither DICOM files nor an OME-Zarr image.")
    # Annotations and the like are of no series that OpenSlide knows.
    series = {name: file for file in reversed(dicom) if (name := dicom_series(file)) is not None}
    if len(series) > 1:
        raise ImageError(
            f"{path} holds {len(series)} DICOM slides; name a file of the one that you mean, such as"
            f" {min(series.values())}, or give each a folder of its own."
        )
    return next(iter(series.values()), dicom[0])


def _known_to_openslide(path: Path) -> bool:
    import openslide

    return openslide.OpenSlide.detect_format(path) is not None
