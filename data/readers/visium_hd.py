"""Space Ranger's bins of Visium HD: ``outs/binned_outputs/square_008um`` or another size.

Each folder of bins has the layout of Visium's ``outs/``, with ``spatial/tissue_positions.parquet``. Cells
segmented by Space Ranger 4 (``segmented_outputs``) are not read.
"""

from __future__ import annotations

from pathlib import Path

from mmap_st.data.cohort import CohortSlide
from mmap_st.data.readers.visium import POSITIONS, sample_name, slide_of
from mmap_st.errors import CohortError
from mmap_st.files import absolute

BINNED = "binned_outputs"
_DEFAULT = "square_008um"


def find_slides(path: Path) -> tuple[CohortSlide, ...]:
    """The folder of one bin size; or ``outs/``, or a folder of samples, of which 8 um bins are preferred.

    Raises
    ------
    CohortError
        If there is none, or the user has to choose the bin size.
    """
    if _is_bins(path):
        outs = absolute(path).parent
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
    # By default Space Ranger writes 2, 8 and 16 um, and analyses 8 um.
    default = [p for p in sizes if p.name == _DEFAULT]
    if len(sizes) > 1 and default:
        return default[0]
    if len(sizes) != 1:
        names = ", ".join(p.name for p in sizes) or "none"
        raise CohortError(
            f"{binned} holds {len(sizes)} bin sizes ({names}); name the folder of one, such as"
            f" visium-hd:{binned / 'square_008um'}."
        )
    return sizes[0]


def _is_bins(path: Path) -> bool:
    return any((path / "spatial" / name).is_file() for name in POSITIONS)
