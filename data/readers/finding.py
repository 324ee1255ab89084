"""Finding the files of a layout, and matching the rows of its spot table to those of its count table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmap_st.data.cohort import LocalSlide
from mmap_st.data.spots import Spots, some
from mmap_st.errors import CohortError, CountsError, SpotsError
from mmap_st.files import is_dicom

#: Suffixes of images that the program can open.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".btf", ".svs", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs",
    ".svslide", ".bif", ".czi", ".dcm",
)  # fmt: skip
#: Of files beside slides, in which no DICOM is looked for.
_OTHER_SUFFIXES = (
    *IMAGE_SUFFIXES,
    ".csv",
    ".tsv",
    ".txt",
    ".gz",
    ".h5",
    ".h5ad",
    ".parquet",
    ".json",
    ".xml",
)


def without_suffix(path: Path, suffixes: Sequence[str]) -> str | None:
    """The file's name without its suffix; None for a folder, a hidden file or another suffix."""
    return stem_of(path.name, suffixes) if path.is_file() else None


def stem_of(name: str, suffixes: Sequence[str]) -> str | None:
    """A file's name without its suffix; None where it is hidden or has another suffix."""
    if name.startswith("."):
        return None
    suffix = max((s for s in suffixes if name.lower().endswith(s)), key=len, default=None)
    return None if suffix is None else name[: len(name) - len(suffix)]


def find_images(folder: Path) -> dict[str, Path]:
    """Images of a folder, by name without suffix; ``.ome.tif`` is one suffix.

    Raises
    ------
    CohortError
        If two images have the same name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        name = without_suffix(path, (*IMAGE_SUFFIXES, ".ome.tif", ".ome.tiff"))
        if name is None:
            continue
        if name in found:
            raise CohortError(
                f"{folder} holds two images of {name} ({some([found[name].name, path.name])}); keep one."
            )
        found[name] = path
    return found


def is_slide_folder(path: Path) -> bool:
    """Whether a folder is one slide: it has DICOM files, or is an OME-Zarr, whatever their names."""
    if not path.is_dir():
        return False
    if path.name.lower().endswith(".ome.zarr") or _is_ome_zarr(path):
        return True
    return any(is_dicom_file(file) for file in path.iterdir())


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM by its suffix, or by its contents where it has none that says otherwise."""
    suffix = path.suffix.lower()
    # A UID is no name with a suffix, though it has dots.
    return suffix == ".dcm" or (suffix not in _OTHER_SUFFIXES and is_dicom(path))


#: What tells the readers of folders apart: the first of which a path below the folder exists.
_SIGNS = (
    ("xenium", ("experiment.xenium", "*/experiment.xenium")),
    ("visium-hd", ("binned_outputs", "outs/binned_outputs", "*/binned_outputs", "*/outs/binned_outputs")),
    (
        "visium",
        ("spatial/tissue_positions*", "outs/spatial/tissue_positions*", "*/spatial/tissue_positions*",
         "*/outs/spatial/tissue_positions*"),
    ),
    ("her2st", ("ST-cnts", "data/ST-cnts")),
    ("hest", ("st/*.h5ad",)),
    ("h5ad", ("*.h5ad",)),
    ("st", ("*_stdata.tsv*", "*/*_stdata.tsv*")),
    ("table", ("*_spots.csv*", "*_spots.tsv*", "*_spots.parquet")),
)  # fmt: skip


def likely_reader(path: Path) -> str | None:
    """The reader of what lies at a path, by names alone; None: none comes to mind.

    A guess for a message, quick wherever the path is: it looks at most three folders deep and opens no table.
    """
    try:
        return _folder_reader(path) if path.is_dir() else _file_reader(path)
    except OSError:  # what may not be looked into says nothing
        return None


def _folder_reader(path: Path) -> str | None:
    for reader, signs in _SIGNS:
        if any(next(path.glob(sign), None) is not None for sign in signs):
            return reader
    if path.suffix.lower() == ".zarr" and (path / "tables").is_dir():
        return "spatialdata"
    holds = any(without_suffix(file, IMAGE_SUFFIXES) is not None for file in path.iterdir())
    return "images" if holds or is_slide_folder(path) else None


def _file_reader(path: Path) -> str | None:
    if not path.is_file():
        return None
    if path.suffix.lower() == ".h5ad":
        return "h5ad"
    return "images" if without_suffix(path, IMAGE_SUFFIXES) is not None or is_dicom_file(path) else None


def _is_ome_zarr(path: Path) -> bool:
    """Whether a Zarr group is an image, or holds images as bioformats2raw writes them."""
    for name in ("zarr.json", ".zattrs"):
        try:
            about = json.loads((path / name).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        about = about.get("attributes", about) if isinstance(about, dict) else {}
        about = about.get("ome", about)
        if isinstance(about, dict) and ("multiscales" in about or "bioformats2raw.layout" in about):
            return True
    return False


def refuse_lognorm(slide: LocalSlide) -> None:
    """Refuse to sum what is no number of transcripts.

    Raises
    ------
    CountsError
        If the cohort says that the table is log-normalised.
    """
    if slide.values == "lognorm":
        raise CountsError(
            f"{slide.counts} is read as log-normalised, and only counts can be summed over squares; leave the"
            " cohort's column values empty (--values counts)."
        )


def in_order_of_counts(spots: Spots, wanted: Sequence[str], spot_path: Path, count_path: Path) -> Spots:
    """The spots that have counts, in the order of the count table, with the numbers of those left out.

    Raises
    ------
    SpotsError
        If the two tables share no id.
    """
    row_of = {name: row for row, name in enumerate(spots.ids)}
    ids = tuple(name for name in wanted if name in row_of)
    if not ids:
        raise SpotsError(
            f"no spot id is in both {count_path} (such as {some(wanted)}) and {spot_path}"
            f" (such as {some(spots.ids)}); check that the two tables belong together."
        )
    rows = np.array([row_of[name] for name in ids])
    return replace(
        spots,
        ids=ids,
        xy=spots.xy[rows],
        array=None if spots.array is None else spots.array[rows],
        positions_without_counts=len(spots) - len(ids),
        counts_without_position=len(wanted) - len(ids),
    )
