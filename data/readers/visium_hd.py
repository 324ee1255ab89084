"""Space Ranger's bins of Visium HD: ``outs/binned_outputs/square_008um`` and its like, of any size.

Each folder of bins is laid out as ``outs/`` of Visium, with ``spatial/tissue_positions.parquet``. Cells that
Space Ranger 4 segments (``segmented_outputs``) are not read.
"""

from __future__ import annotations

from pathlib import Path

from mmap_st.data.cohort import CohortSlide
from mmap_st.data.readers.visium import POSITIONS, sample_name, slide_of
from mmap_st.errors import CohortError

BINNED = "binned_outputs"
_USUAL = "square_008um"


def find_slides(path: Path) -> tuple[CohortSlide, ...]:
    """The folder of one bin size; or ``outs/``, or a folder of samples: their 8 um bins if there are several.

    Raises
    ------
    CohortError
        If there is none, or the choice of a bin size is the user's.
    """
    if _is_bins(path):
        outs = path.resolve().parent
        name = sample_name(outs.parent if outs.name == BINNED else path)
        return (slide_of(path, name, "visium-hd"),)
    samples = [p for p in (path, path / "outs") if (p / BINNED).is_dir()]
    if path.name == BINNED and path.is_dir():
        samples = [path.parent]
    if not samples and path.is_dir():
        inner = sorted(p for p in path.iterdir() if p.is_dir())
        samples = [p for folder in inner for p in (folder, folder / "outs") if (p / BINNED).is_dir()]
    if not samples:
        raise CohortError(
            f"{path} holds no bins of Visium HD: neither spatial/{POSITIONS[0]} nor a folder {BINNED}."
        )
    return tuple(slide_of(_one_size(outs / BINNED), sample_name(outs), "visium-hd") for outs in samples)


def _one_size(binned: Path) -> Path:
    sizes = sorted(p for p in binned.iterdir() if _is_bins(p))
    # Space Ranger writes 2, 8 and 16 um unless told otherwise, and its own analyses are of 8.
    usual = [p for p in sizes if p.name == _USUAL]
    if len(sizes) > 1 and usual:
        return usual[0]
    if len(sizes) != 1:
        names = ", ".join(p.name for p in sizes) or "none"
        raise CohortError(
            f"{binned} holds {len(sizes)} sizes of bins ({names}); name the folder of one, such as"
            f" visium-hd:{binned / 'square_008um'}."
        )
    return sizes[0]


def _is_bins(path: Path) -> bool:
    return any((path / "spatial" / name).is_file() for name in POSITIONS)
