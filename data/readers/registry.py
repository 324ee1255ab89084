"""The readers by name, and reading a slide with the reader that its cohort row names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import polars as pl

from mmap_st.data.bins import LEAST_UM, MOST_UM
from mmap_st.data.cohort import (
    COLUMNS,
    Cohort,
    CohortSlide,
    LocalSlide,
    cohort_from_table,
    read_cohort,
)
from mmap_st.data.counts import Counts
from mmap_st.data.readers import (
    h5ad,
    her2st,
    hest,
    images,
    spatialdata,
    st,
    table,
    visium,
    visium_hd,
    xenium,
)
from mmap_st.data.readers.finding import find_images, likely_reader
from mmap_st.data.readers.remote import local_tables
from mmap_st.data.spots import Spots
from mmap_st.data.tables import duplicates, some
from mmap_st.errors import CohortError, CountsError, SpotsError, did_you_mean
from mmap_st.object_stores import check_obstore
from mmap_st.urls import Place, Url, url_of

if TYPE_CHECKING:
    import pandas as pd

#: What functions take as a cohort, see `as_cohort`.
CohortSource: TypeAlias = Union[Cohort, Path, str, pl.DataFrame, "pd.DataFrame"]


@dataclass(frozen=True)
class Reader:
    """How to read one layout.

    Attributes
    ----------
    name
        The word before the colon in ``reader:path`` and in the cohort's column `reader`.
    about
        What it reads, in a few words.
    find
        Lists the slides at a path.
    spots
        Reads a slide's spots, in the order of its count table.
    counts
        Reads a slide's counts, all rows and genes.
    chooses
        Whether it knows the cohort's column `where`.
    find_binned
        Lists the slides at a path, with what they hold joined to squares of so many micrometres; None where
        nothing can be joined.
    beside
        Names of files beside the spots that it reads too where they are there; None: it reads a whole folder.
    """

    name: str
    about: str
    find: Callable[[Path], tuple[CohortSlide, ...]]
    spots: Callable[[LocalSlide], Spots]
    counts: Callable[[LocalSlide], Counts]
    chooses: bool = False
    find_binned: Callable[[Path, float], tuple[CohortSlide, ...]] | None = None
    beside: tuple[str, ...] | None = ()


def _reader(name: str, about: str, module: Any, tables: Any = None) -> Reader:
    """A reader whose module finds slides, and reads tables unless `tables` does."""
    tables = tables or module
    chooses = tables in (h5ad, spatialdata)
    binned = module.find_slides if module in (visium_hd, xenium) else None
    beside = (visium.SCALE_FACTORS,) if module in (visium, visium_hd) else ()
    return Reader(
        name,
        about,
        module.find_slides,
        tables.read_spots,
        tables.read_counts,
        chooses,
        binned,
        None if module in (xenium, spatialdata) else beside,
    )


_ALL = (
    _reader("her2st", "the repository almaan/her2st: legacy ST", her2st),
    _reader("st", "legacy ST by file names: cSCC, STNet's breast set", st),
    _reader("visium", "Space Ranger's outs/ of Visium (extra: visium)", visium),
    _reader("visium-hd", "Space Ranger's bins of Visium HD (extra: visium)", visium_hd),
    _reader("xenium", "Xenium: transcripts or cells, binned (cells: extra visium)", xenium),
    _reader("hest", "HEST-1k, or one sample of it", hest, h5ad),
    _reader("h5ad", "AnnData files with obsm['spatial']", h5ad),
    _reader("spatialdata", "SpatialData stores (extra: spatialdata)", spatialdata),
    _reader("table", "plain tables of spots and counts", table),
    _reader("images", "images without any counts", images),
)

READERS = {reader.name: reader for reader in _ALL}

# Shorter words are part of others by chance.
_LEAST_LETTERS = 4
#: Space Ranger's copies of the image, of 2,000 and 600 pixels.
_SMALL_IMAGES = ("tissue_hires_image.png", "tissue_lowres_image.png")


def open_cohort(
    text: str,
    *,
    image: Place | Mapping[str, Place] | None = None,
    values: str | None = None,
    bin_um: float | None = None,
) -> Cohort:
    """Open a COHORT of the command line: a cohort file, or ``reader:path``.

    Parameters
    ----------
    text
        COHORT; a cohort file may be a URL.
    image
        The image that the spots were placed on, if it is elsewhere; a folder of images with the names of the
        slides; or an image for each of some slides, by name.
    values
        What the count tables hold, see `mmap_st.data.cohort.VALUES`.
    bin_um
        Side of the squares that transcripts, cells or bins are joined to, in micrometres; None: as the reader
        does, or the cohort file says.

    Raises
    ------
    CohortError
        If there is no such file, reader or folder, it holds no slides, or nothing that can be joined.
    StoreError
        If a server does not give it.
    """
    if bin_um is not None and not LEAST_UM <= bin_um <= MOST_UM:
        raise CohortError(f"--bin-um {bin_um:g}: give micrometres from {LEAST_UM:g} to {MOST_UM:,.0f}.")
    name, colon, path = text.partition(":")
    url = url_of(text)
    if colon and name in READERS:
        if url_of(path) is not None:
            raise CohortError(
                f"{text}: a reader looks for files in a folder on a disk; copy the folder, or write a cohort"
                " file with the URLs of its images and tables."
            )
        place = Path(path)
        if not place.exists():
            raise CohortError(
                f"{place} does not exist; {name}: needs the file or folder that holds the data."
            )
        cohort = Cohort(_found(READERS[name], place, bin_um), text)
    elif url is None and colon and not Path(text).exists():
        raise CohortError(
            f"There is no reader {name!r}{_nearest(name)}; the readers are {', '.join(READERS)}."
        )
    else:
        if url is None:
            _refuse_data(Path(text))
        cohort = read_cohort(url or Path(text))
        if bin_um is not None:
            cohort = rebinned(cohort, bin_um)
    if image is not None:
        cohort = replace(cohort, slides=_with_images(cohort, image))
    if values is not None:
        slides = tuple(replace(s, values=values) if s.counts else s for s in cohort.slides)
        cohort = replace(cohort, slides=slides)
    return cohort


def _refuse_data(path: Path) -> None:
    """Name the reader where the path of data was given without one.

    Raises
    ------
    CohortError
        If the path is a folder, or a file that a reader takes.
    """
    reader = likely_reader(path) if path.exists() else None
    if reader is not None:
        raise CohortError(f"{path} is data, not a cohort file; say which reader reads it: {reader}:{path}.")
    if path.is_dir():
        raise CohortError(
            f"{path} is a folder, not a cohort file; say which reader reads it, as in visium:{path} (the"
            f" readers are {', '.join(READERS)})."
        )


def rebinned(cohort: Cohort, bin_um: float) -> Cohort:
    """The cohort with what its slides hold joined to squares of `bin_um` micrometres.

    Raises
    ------
    CohortError
        If a slide with spots is of a reader that joins nothing.
    """
    for slide in cohort.slides:
        reader = READERS.get(slide.reader or "")
        if slide.spots is not None and reader is not None and reader.find_binned is None:
            raise CohortError(_not_joined(f"--bin-um {bin_um:g}", reader.name))
    slides = tuple(replace(s, bin_um=bin_um) if s.spots else s for s in cohort.slides)
    return replace(cohort, slides=slides)


def as_cohort(source: CohortSource) -> Cohort:
    """The cohort that `source` is or names.

    Parameters
    ----------
    source
        A cohort; ``reader:path``; the path of a cohort file (.csv, .parquet); or a polars or pandas data
        frame with a cohort file's columns, in which paths are relative to the current folder.

    Raises
    ------
    CohortError
        If it is none of these, or the cohort cannot be read.

    Examples
    --------
    >>> import polars as pl
    >>> from mmap_st.data.readers import as_cohort
    >>> as_cohort(pl.DataFrame({"slide": ["A1", "B1"], "patient": ["A", "B"]})).names
    ('A1', 'B1')
    """
    if isinstance(source, Cohort):
        return source
    if isinstance(source, str | Path):
        return open_cohort(str(source))
    if isinstance(source, pl.DataFrame):
        columns = {name: source[name].to_list() for name in source.columns}
    elif hasattr(source, "convert_dtypes"):  # pandas, which need not be imported here
        whole = source.convert_dtypes()  # whole numbers next to gaps are floats else: patient 1.0
        cells = whole.astype(object).where(whole.notna(), None)
        repeated = [name for name in duplicates([str(name) for name in cells.columns]) if name in COLUMNS]
        if repeated:
            raise CohortError(f"the data frame has several columns {some(repeated)}; keep one of each.")
        columns = {str(name): cells.iloc[:, i].tolist() for i, name in enumerate(cells.columns)}
    else:
        raise CohortError(
            f"a {type(source).__name__} is not a cohort; give a cohort, reader:path, a cohort file or a data"
            " frame."
        )
    texts = {name: [_cell_text(value) for value in values] for name, values in columns.items()}
    table = pl.DataFrame(texts, schema=dict.fromkeys(texts, pl.String))
    return cohort_from_table(table, "the data frame", Path.cwd())


def _cell_text(value: object) -> str | None:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def read_spots(slide: CohortSlide) -> Spots:
    """Read the spots of a cohort row, in pixels of its image.

    Raises
    ------
    SpotsError
        If the row names no spots or they cannot be read.
    """
    if slide.spots is None:
        raise SpotsError("the cohort names no spot table for it.")
    _check_exists(slide.spots, SpotsError)
    if slide.counts is not None:
        _check_exists(slide.counts, CountsError)
    reader = _reader_of(slide)
    with local_tables(slide, reader.name, reader.beside) as local:
        spots = reader.spots(local)
    if slide.pitch_um is not None:
        spots = replace(spots, pitch_um=slide.pitch_um)
    if slide.scale is not None:
        spots = replace(
            spots,
            xy=spots.xy * slide.scale,
            mpp=None if spots.mpp is None else spots.mpp / slide.scale,
            notes=(*spots.notes, _note_of_scale(slide, slide.scale)),
        )
    return spots


def _note_of_scale(slide: CohortSlide, scale: float) -> str:
    """That positions were scaled; of Space Ranger's own small images, that there is a better one."""
    note = f"positions scaled by {scale:.6g} to fit the image"
    name = "" if slide.image is None else slide.image.name
    if not name.endswith(_SMALL_IMAGES):
        return note
    return f"{note}, {name}; it is a small copy: name the image that Space Ranger was given with --image"


def read_counts(slide: CohortSlide) -> Counts:
    """Read the counts of a cohort row.

    Raises
    ------
    CountsError
        If the row names no counts or they cannot be read.
    """
    if slide.counts is None:
        raise CountsError("the cohort names no count table for it.")
    _check_exists(slide.counts, CountsError)
    reader = _reader_of(slide)
    with local_tables(slide, reader.name, reader.beside) as local:
        return reader.counts(local)


def _found(reader: Reader, place: Path, bin_um: float | None) -> tuple[CohortSlide, ...]:
    if bin_um is None:
        return reader.find(place)
    if reader.find_binned is None:
        raise CohortError(_not_joined(f"--bin-um {bin_um:g}", reader.name))
    return reader.find_binned(place, bin_um)


def _not_joined(given: str, reader: str) -> str:
    able = " and ".join(one.name for one in READERS.values() if one.find_binned is not None)
    return f"{given} is for the readers {able}, not for {reader}; leave it out."


def _with_images(cohort: Cohort, image: Place | Mapping[str, Place]) -> tuple[CohortSlide, ...]:
    """The slides with the image that the spots were placed on, as the user names it."""
    if isinstance(image, Mapping):
        image = {name: url_of(path) or path for name, path in image.items()}
        for name, path in image.items():
            if name not in cohort:
                raise CohortError(
                    f"--image {name}={path}: {cohort.source} has no slide {name}"
                    f"{did_you_mean(name, cohort.names)}; its slides are {some(cohort.names)}."
                )
            if isinstance(path, Url):
                check_obstore(path)
            elif not path.exists():
                raise CohortError(f"--image {name}={path}: {path} does not exist.")
        return tuple(
            replace(s, image=image[s.slide], scale=None) if s.slide in image else s for s in cohort.slides
        )
    image = url_of(image) or image
    if isinstance(image, Url):
        check_obstore(image)
    elif not image.exists():
        raise CohortError(f"--image {image} does not exist.")
    if isinstance(image, Url) or not image.is_dir() or any(image.glob("*.dcm")):
        if len(cohort.slides) > 1 and isinstance(image, Url):
            raise CohortError(
                f"--image {image} is one image and {cohort.source} has {len(cohort.slides)} slides; name that"
                f" of each, as in --image {cohort.names[0]}={image}."
            )
        if len(cohort.slides) > 1:
            raise CohortError(
                f"--image {image} is one image and {cohort.source} has {len(cohort.slides)} slides; name a"
                f" folder of images with the names of the slides, such as {cohort.names[0]}.tif."
            )
        return (replace(cohort.slides[0], image=image, scale=None),)
    found = find_images(image)
    if not set(found) & set(cohort.names):
        raise CohortError(
            f"--image {image}: no image there has the name of a slide, such as {cohort.names[0]}.tif."
        )
    return tuple(
        replace(s, image=found[s.slide], scale=None) if s.slide in found else s for s in cohort.slides
    )


def _check_exists(path: Place, error: type[CountsError] | type[SpotsError]) -> None:
    if isinstance(path, Path) and not path.exists():  # of a URL, its server says so when it is asked
        raise error(f"{path} does not exist; correct the path in the cohort.")


def _reader_of(slide: CohortSlide) -> Reader:
    if slide.reader is None:
        raise SpotsError(f"the cohort names no reader for it; the readers are {', '.join(READERS)}.")
    if slide.reader not in READERS:
        raise SpotsError(
            f"there is no reader {slide.reader!r}{_nearest(slide.reader)};"
            f" the readers are {', '.join(READERS)}."
        )
    reader = READERS[slide.reader]
    if slide.where is not None and not reader.chooses:
        raise SpotsError(
            f"the cohort's column where ({slide.where}) chooses rows of AnnData files, and the reader"
            f" {slide.reader} reads none; leave it empty."
        )
    if slide.bin_um is not None and reader.find_binned is None:
        raise SpotsError(_not_joined(f"the cohort's column bin_um ({slide.bin_um:g})", reader.name))
    return reader


def _nearest(word: str) -> str:
    """Readers that a word may mean: those that read what is called so (`anndata`), or names like it."""
    squeezed = _squeezed(word)
    meant = [reader.name for reader in _ALL if squeezed in _squeezed(reader.about)]
    if meant and len(squeezed) >= _LEAST_LETTERS:
        return f" (did you mean {', '.join(meant)}?)"
    return did_you_mean(word, READERS)


def _squeezed(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))
