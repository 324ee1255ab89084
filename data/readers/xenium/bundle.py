"""Output folders of the Xenium Onboard Analysis, and the H&E and its alignment in them or beside them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from mmap_st.data.cohort import CohortSlide
from mmap_st.data.readers.annotated import positive
from mmap_st.data.readers.finding import IMAGE_SUFFIXES, without_suffix
from mmap_st.data.tables import reading, refuse_large, some
from mmap_st.errors import CohortError, SpotsError
from mmap_st.files import absolute, refuse_special

#: Describes a bundle, and is in each.
EXPERIMENT = "experiment.xenium"
TRANSCRIPTS = ("transcripts.parquet", "transcripts.csv.gz", "transcripts.csv")
CELLS = ("cells.parquet", "cells.csv.gz", "cells.csv")
MATRICES = ("cell_feature_matrix.h5", "cell_feature_matrix")
#: Side of the squares where none is asked for, in micrometres: as far apart as the spots of Visium.
DEFAULT_UM = 100.0

_HE = "he_image"
_ALIGNMENT = "alignment.csv"
_OME = (".ome.tif", ".ome.tiff")
_IMAGES = (*_OME, *IMAGE_SUFFIXES)
#: Micrometres per pixel of the morphology image; instruments have 0.2125.
_LEAST_PIXEL, _MOST_PIXEL = 0.01, 10.0


def find_slides(path: Path, bin_um: float = DEFAULT_UM) -> tuple[CohortSlide, ...]:
    """One bundle, or all bundles of a folder.

    Parameters
    ----------
    path
        A folder with ``experiment.xenium``, or a folder of such folders.
    bin_um
        Side of the squares that transcripts or cells are joined to, in micrometres.

    Raises
    ------
    CohortError
        If there is none, or an image has to be chosen.
    """
    refuse_special(path, CohortError)
    if path.is_file():
        todo = (
            "unzip it, and name the folder"
            if zipfile.is_zipfile(path)
            else f"name the folder that it is in, xenium:{absolute(path).parent}"
        )
        raise CohortError(f"{path} is a file, and xenium: needs the folder with {EXPERIMENT}; {todo}.")
    bundles = [place for place in (path, path / "outs") if _is_bundle(place)]
    if not bundles and path.is_dir():
        inner = sorted(place for place in path.iterdir() if place.is_dir())
        bundles = [place for folder in inner for place in (folder, folder / "outs") if _is_bundle(place)]
    if not bundles:
        zipped = sorted(p.name for p in path.glob("*.zip")) if path.is_dir() else []
        todo = f"unzip {some(zipped)} there" if zipped else "name the output folder of a Xenium run"
        raise CohortError(f"{path} holds no {EXPERIMENT}, and no folder below it does; {todo}.")
    return tuple(_slide_of(bundle, bin_um) for bundle in bundles)


def tables_of(bundle: Path) -> Path | None:
    """What is counted: transcripts, where there are none the matrix of the cells; None without either."""
    return _first(bundle, TRANSCRIPTS) or _first(bundle, MATRICES)


def cells_of(bundle: Path) -> Path | None:
    """The table of the cells' positions."""
    return _first(bundle, CELLS)


def matrix_of(bundle: Path) -> Path | None:
    """The matrix of the cells, which also names all genes that were measured."""
    return _first(bundle, MATRICES)


def read_pixel_um(experiment: Path) -> float:
    """Micrometres per pixel of the morphology image.

    Raises
    ------
    SpotsError
        If the file cannot be read, or does not say it.
    """
    with reading(experiment, "the description of a Xenium run", SpotsError):
        refuse_large(experiment, experiment.stat().st_size, "it has", SpotsError)
        about = json.loads(experiment.read_text("utf-8"))
    given = about.get("pixel_size") if isinstance(about, dict) else None
    pixel = None if isinstance(given, bool) else positive(given)
    if pixel is None or not _LEAST_PIXEL <= pixel <= _MOST_PIXEL:
        found = "no pixel_size" if given is None else f"the pixel_size {given!r:.40}"
        raise SpotsError(
            f"{experiment} has {found}; the micrometres per pixel of the morphology image belong there"
            " (0.2125): copy it from the run again."
        )
    return pixel


def find_alignment(bundle: Path, image: Path | None) -> Path:
    """The matrix that maps pixels of the H&E to pixels of the morphology image.

    It is the one named as the image and beside it, else the one in the bundle or beside that.

    Raises
    ------
    SpotsError
        If there is none, or there are several.
    """
    if image is None:
        todo = f"name its H&E by --image, and put the matrix beside that as NAME{_ALIGNMENT}"
    else:
        own = absolute(image).with_name(f"{without_suffix(image, _IMAGES) or image.stem}{_ALIGNMENT}")
        if own.exists():
            return own
        todo = f"put it beside the image as {own.name}"
    found = _near(bundle, _is_alignment, SpotsError)
    if found is None:
        has = "no H&E, and no matrix that aligns one" if image is None else f"no matrix that aligns {image}"
        raise SpotsError(f"{bundle} has {has}; Xenium Explorer exports the matrix: {todo}.")
    return found


def _slide_of(bundle: Path, bin_um: float) -> CohortSlide:
    return CohortSlide(
        slide=_name_of(bundle),
        # Pictures of it in other formats are smaller copies.
        image=_near(bundle, _is_ome, CohortError) or _near(bundle, _is_image, CohortError),
        spots=bundle / EXPERIMENT,
        counts=tables_of(bundle),
        reader="xenium",
        bin_um=bin_um,
    )


def _name_of(bundle: Path) -> str:
    """The folder's name without what downloads add; that of its parent if the folder is ``outs``."""
    whole = absolute(bundle)
    name = whole.parent.name if whole.name == "outs" else whole.name
    return name.removesuffix("_outs") or name


def _is_bundle(folder: Path) -> bool:
    return (folder / EXPERIMENT).exists() and not (folder / EXPERIMENT).is_dir()


def _first(bundle: Path, names: tuple[str, ...]) -> Path | None:
    return next((bundle / name for name in names if (bundle / name).exists()), None)


def _is_ome(name: str) -> bool:
    return _HE in name and name.endswith(_OME)


def _is_image(name: str) -> bool:
    return _HE in name and name.endswith(_IMAGES)


def _is_alignment(name: str) -> bool:
    return _HE in name and name.endswith(_ALIGNMENT)


def _near(bundle: Path, wanted: Callable[[str], bool], error: type[CohortError | SpotsError]) -> Path | None:
    """The one file in a bundle; else the one beside it of the bundle's name, or of the only bundle there."""
    bundle = bundle if bundle.name not in ("", "..") else absolute(bundle)
    inside = _files(bundle, wanted)
    beside = _files(bundle.parent, wanted)
    own = [path for path in beside if _prefix(path) in (bundle.name.lower(), _name_of(bundle).lower())]
    for found in (inside, own):
        if len(found) > 1:
            raise error(
                f"{found[0].parent} holds several files of one kind for it"
                f" ({some([path.name for path in found])}); keep one."
            )
        if found:
            return found[0]
    alone = sum(_is_bundle(place) for place in _listed(bundle.parent)) == 1
    return beside[0] if alone and len(beside) == 1 else None


def _files(folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    return [
        path
        for path in _listed(folder)
        if not path.name.startswith(".") and wanted(path.name.lower()) and not path.is_dir()
    ]


def _listed(folder: Path) -> list[Path]:
    """What is in a folder; nothing where only what is below it may be seen."""
    try:
        return sorted(folder.iterdir())
    except PermissionError:
        return []


def _prefix(path: Path) -> str:
    """What stands before the word for the H&E."""
    return path.name.lower().partition(_HE)[0].rstrip("_-. ")
