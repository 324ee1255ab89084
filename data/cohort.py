"""A cohort: a table with one row per slide, in a CSV or Parquet file or a data frame."""

from __future__ import annotations

import difflib
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import polars as pl

from mmap_st.data.bins import LEAST_UM, MOST_UM
from mmap_st.data.tables import DECIMAL_COMMA, THOUSANDS, read_table
from mmap_st.errors import (
    CohortError,
    RequestError,
    WriteError,
    counted,
    did_you_mean,
    first_line,
    printable,
)
from mmap_st.fetching import cached, look_at, named_by_url
from mmap_st.files import absolute, check_file_out, refuse_special, replacing, writing
from mmap_st.object_stores import check_obstore
from mmap_st.urls import Place, Url, url_of

COLUMNS = (
    "slide", "patient", "image", "spots", "counts", "reader", "mpp",
    "mpp_from", "pitch_um", "scale", "values", "labels",
    "where", "bin_um",
)  # fmt: skip
_ALWAYS_WRITTEN = COLUMNS[:7]
#: Of a cohort file's name; all but Parquet are CSV.
_ENDINGS = (".csv", ".parquet", ".txt", "")
_PATH_COLUMNS = ("image", "spots", "counts", "labels")

# What pandas, R, JSON and spreadsheets write for a missing value.
_MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "none", "null", "<na>", "nat"})
_UNKNOWN_PATIENT = frozenset({"unknown", "not known", "not available", "missing", "?", "-"})

#: Values of the column `values`: raw counts, or counts scaled to a library size and log1p-transformed.
VALUES = ("counts", "lognorm")
#: Values of the column `mpp_from`: the column `mpp`, the files of the spots, their pitch, or the image.
MPP_SOURCES = ("cohort", "spots", "pitch", "image")


@dataclass(frozen=True)
class CohortSlide:
    """One row of a cohort; an empty cell is None.

    Attributes
    ----------
    slide
        Name of the slide, unique in the cohort.
    patient
        Whose tissue it is.
    image, spots, counts
        Paths or URLs of the H&E image, the spot table and the count table.
    reader
        Name of the reader that understands the spot and count tables.
    mpp
        Micrometres per pixel of the image, if the user gives them.
    mpp_from
        Which source of micrometres per pixel to believe where they disagree, see `MPP_SOURCES`.
    pitch_um
        Distance between neighbouring spots in micrometres, where the reader does not know it.
    scale
        Factor from pixels of the spot table to pixels of `image`; None means 1.
    values
        What the count table holds, see `VALUES`; None means counts.
    labels
        Path or URL of a pathologist's labels.
    where
        Of a table of several sections the one to use, by a column of AnnData's ``obs``: ``batch=A``.
    bin_um
        Side in micrometres of the squares that transcripts, cells or fine bins are joined to; None: as the
        reader does.
    """

    slide: str
    patient: str | None = None
    image: Place | None = None
    spots: Place | None = None
    counts: Place | None = None
    reader: str | None = None
    mpp: float | None = None
    mpp_from: str | None = None
    pitch_um: float | None = None
    scale: float | None = None
    values: str | None = None
    labels: Place | None = None
    where: str | None = None
    bin_um: float | None = None


@dataclass(frozen=True)
class LocalSlide(CohortSlide):
    """A row whose tables are on this machine, as readers take it; see `local_tables`."""

    image: Path | None = None
    spots: Path | None = None
    counts: Path | None = None

    @classmethod
    def of(cls, slide: CohortSlide, **places: Path | None) -> LocalSlide:
        """A row with these places in place of its own."""
        own: dict[str, Any] = {field.name: getattr(slide, field.name) for field in fields(CohortSlide)}
        return cls(**(own | places))


@dataclass(frozen=True, repr=False)
class Cohort:
    """Slides in the order of their table, and where the table is from."""

    slides: tuple[CohortSlide, ...]
    source: str

    def __post_init__(self) -> None:
        if not self.slides:
            raise CohortError(f"{self.source} lists no slides; a cohort needs at least one row.")
        repeated = [name for name, n in Counter(s.slide for s in self.slides).items() if n > 1]
        if repeated:
            raise CohortError(
                f"{self.source} names {', '.join(repeated)} more than once; give each slide its own name."
            )
        for slide in self.slides:
            for column in ("slide", "patient", *_PATH_COLUMNS):
                _refuse_no_text(getattr(slide, column), column, self.source, path=column in _PATH_COLUMNS)

    def __len__(self) -> int:
        return len(self.slides)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __repr__(self) -> str:
        patients = len({slide.patient for slide in self.slides if slide.patient})
        known = {
            "with an image": sum(slide.image is not None for slide in self.slides),
            "with counts": sum(slide.counts is not None for slide in self.slides),
        }
        of = f" of {counted(patients, 'patient')}" if patients else ""
        shown = ", ".join(f"{n} {what}" for what, n in known.items())
        return f"Cohort {printable(self.source)}: {counted(len(self), 'slide')}{of}; {shown}"

    @property
    def names(self) -> tuple[str, ...]:
        """The slides' names, in order."""
        return tuple(slide.slide for slide in self.slides)

    def __getitem__(self, name: str) -> CohortSlide:
        for slide in self.slides:
            if slide.slide == name:
                return slide
        raise CohortError(f"{self.source} has no slide {name}{did_you_mean(name, self.names)}.")

    def only(self, names: Iterable[str]) -> Cohort:
        """These slides alone, in this order.

        Raises
        ------
        CohortError
            If one is not in the cohort.
        """
        return replace(self, slides=tuple(self[name] for name in dict.fromkeys(names)))

    def of_patients(self, patients: Iterable[str]) -> tuple[str, ...]:
        """Names of these patients' slides, in the cohort's order."""
        wanted = set(patients)
        return tuple(slide.slide for slide in self.slides if slide.patient in wanted)


def known_text(value: object) -> str | None:
    """Text without surrounding blanks; None for what tools write where a value is missing, such as NA."""
    text = "" if value is None else str(value).strip()
    return None if text.lower() in _MISSING else text


def known_patient(name: str | None) -> str | None:
    """A patient's name; None for words that say that it is not known, which name nobody."""
    text = known_text(name)
    return None if text is None or text.lower() in _UNKNOWN_PATIENT else text


def patient_key(name: str) -> str:
    """What is the same for names that differ in case and blanks only, and likely are one person's."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def alike_patients(names: Iterable[str | None]) -> list[str]:
    """For patients whose names differ in case and blanks only, what is to be done, in a sentence each."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for name in names if name is not None):
        groups.setdefault(patient_key(name), []).append(name)
    return [
        f"patients {' and '.join(map(repr, group))} differ in case or blanks only, and a split by patient"
        " takes them for different persons; give one person one name"
        for group in groups.values()
        if len(group) > 1
    ]


def read_cohort(path: Place) -> Cohort:
    """Read a cohort file.

    Parameters
    ----------
    path
        A .csv or .parquet file with the columns of `COLUMNS`, on a disk or on a server; only ``slide`` is
        required. Paths in it are relative to its folder, and may be URLs; cells may be empty.

    Raises
    ------
    CohortError
        If the file is missing or is not a table, or a row cannot be used.
    StoreError
        If a server does not give it.
    """
    if isinstance(path, Url):
        return _read_remote(path)
    refuse_special(path, CohortError)
    if not path.is_file():
        raise CohortError(
            f"The cohort {path} does not exist; `mmap cohort READER:PATH --out FILE` writes one."
        )
    return cohort_from_table(_texts(path), str(path), path.parent)


def _read_remote(url: Url) -> Cohort:
    copy = cached(look_at(url))
    if copy.is_dir():
        raise CohortError(f"{url} is a folder, not a cohort file; give the URL of a .csv or .parquet file.")
    with named_by_url({copy: url}):
        texts = _texts(copy)
    return cohort_from_table(texts, str(url), url.parent)


def _texts(path: Path) -> pl.DataFrame:
    """The cells of a table."""
    table = read_table(path, CohortError, once=COLUMNS)
    try:
        return table.cast(pl.String)
    except pl.exceptions.PolarsError as error:
        raise CohortError(f"{path} cannot be read as a table: {first_line(error)}") from error


def cohort_from_table(table: pl.DataFrame, source: str, folder: Place) -> Cohort:
    """Make a cohort from a table with the columns of `COLUMNS`, all of them text.

    Parameters
    ----------
    table
        One row a slide; empty cells may be null or blank.
    source
        What messages call the table.
    folder
        Folder that paths are relative to.

    Raises
    ------
    CohortError
        If there is no column ``slide``, a column looks misspelt, or a row cannot be used.
    """
    if "slide" not in table.columns:
        raise CohortError(
            f"{source} has no column `slide`; its columns are {', '.join(table.columns)},"
            f" those of a cohort are {', '.join(COLUMNS)}."
        )
    _refuse_misspelt(table.columns, source)
    rows = table.select(c for c in COLUMNS if c in table.columns).iter_rows(named=True)
    slides = [_parse_row(row, source, folder, number) for number, row in enumerate(rows, start=1)]
    places = (getattr(slide, column) for slide in slides for column in _PATH_COLUMNS)
    if (url := next((place for place in places if isinstance(place, Url)), None)) is not None:
        check_obstore(url)
    return Cohort(tuple(slides), source)


def _refuse_misspelt(columns: Sequence[str], source: str) -> None:
    """Refuse a column that is likely meant as one of ours; other columns are the user's own."""
    absent = [column for column in COLUMNS if column not in columns]
    for column in columns:
        near = difflib.get_close_matches(column.strip().lower(), absent, n=1, cutoff=0.8)
        if column not in COLUMNS and near:
            raise CohortError(
                f"{source} has a column {column!r}, which a cohort does not have; rename it to {near[0]!r} if"
                " that is what it holds, else to another name."
            )


def check_cohort_out(path: Path) -> None:
    """Refuse a cohort file that cannot be written, before the work whose result it holds.

    Raises
    ------
    WriteError
        If it is a folder, nothing can be written there, or its name is that of another kind of file.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise WriteError(
            f"--out {path}: a cohort is written as CSV or Parquet; name a .csv or .parquet file."
        )
    check_file_out(path)


def write_cohort(cohort: Cohort, path: Path) -> None:
    """Write a cohort as CSV (or Parquet, if `path` ends so), with paths relative to its folder.

    Raises
    ------
    WriteError
        If it cannot be written; see `check_cohort_out`.
    """
    check_cohort_out(path)
    path = path.resolve()
    folder = path.parent
    columns = [
        column
        for column in COLUMNS
        if column in _ALWAYS_WRITTEN or any(getattr(slide, column) is not None for slide in cohort.slides)
    ]
    for slide in cohort.slides:
        for column in _PATH_COLUMNS:
            _refuse_no_text(getattr(slide, column), column, cohort.source)
    rows = [
        {
            column: _cell(getattr(slide, column), folder if column in _PATH_COLUMNS else None)
            for column in columns
        }
        for slide in cohort.slides
    ]
    table = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String))
    with writing(path, wanted="file"):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            if path.suffix.lower() == ".parquet":
                table.write_parquet(draft)
            else:
                table.write_csv(draft)


def _refuse_no_text(value: object, column: str, source: str, *, path: bool = False) -> None:
    """Refuse a NUL, which no file's name has and no table of predictions holds, and what is no character.

    Names of files may be no text; where one is only read, that does not matter.
    """
    text = "" if value is None else str(value)
    lone = not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)
    if "\0" in text or (lone and not path):
        found = "a NUL" if "\0" in text else "bytes that are not UTF-8"
        raise CohortError(f"{source}: the {column} {text} has {found} in it; rename it.")


def _cell(value: object, folder: Path | None) -> str | None:
    if value is None:
        return None
    if folder is not None and not isinstance(value, Url):
        return Path(os.path.relpath(absolute(Path(str(value))), folder)).as_posix()
    return str(value)


def _parse_row(row: dict[str, str | None], source: str, folder: Place, number: int) -> CohortSlide:
    cells = {column: known_text(text) for column, text in row.items()}
    slide = (row["slide"] or "").strip() or None  # any name is one
    if slide is None:
        raise CohortError(f"{source}, row {number}: the slide has no name; fill in the column `slide`.")

    where = f"{source}, row {number} ({slide})"

    def located(column: str) -> Place | None:
        text = cells.get(column)
        try:
            return None if text is None else _place(text, folder)
        except RequestError as error:
            raise CohortError(f"{where}: {column}: {error}") from error

    return CohortSlide(
        slide=slide,
        patient=known_patient(cells.get("patient")),
        image=located("image"),
        spots=located("spots"),
        counts=located("counts"),
        reader=cells.get("reader"),
        mpp=_number(cells.get("mpp"), "mpp", where, 0.01, 100, "micrometres per pixel, such as 0.5"),
        mpp_from=_word(cells.get("mpp_from"), "mpp_from", where, MPP_SOURCES),
        pitch_um=_number(cells.get("pitch_um"), "pitch_um", where, 0.1, 10_000, "micrometres, such as 100"),
        scale=_number(cells.get("scale"), "scale", where, 1e-4, 1e4, "a factor, such as 0.15"),
        values=_word(cells.get("values"), "values", where, VALUES),
        labels=located("labels"),
        where=cells.get("where"),
        bin_um=_number(cells.get("bin_um"), "bin_um", where, LEAST_UM, MOST_UM, "micrometres, such as 100"),
    )


def _place(text: str, folder: Place) -> Place:
    """Where a cell leads, from the folder of its file."""
    if (url := url_of(text)) is not None:
        return url
    if isinstance(folder, Path):
        return folder / text
    if posixpath.isabs(text):
        return Path(text)
    scheme, _, rest = folder.text.partition("://")
    host, _, path = rest.partition("/")
    found = url_of(f"{scheme}://{host}{posixpath.normpath(posixpath.join('/', path, text))}")
    assert found is not None
    return found


def _number(
    text: str | None, column: str, where: str, least: float, most: float, advice: str
) -> float | None:
    if text is None:
        return None
    if re.match(DECIMAL_COMMA, text) and not re.match(THOUSANDS, text):
        text = text.replace(",", ".")
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise CohortError(f"{where}: {column} is {text!r}; give {advice}, or leave it empty.")
    return number


def _word(text: str | None, column: str, where: str, known: tuple[str, ...]) -> str | None:
    if text is not None and text not in known:
        raise CohortError(
            f"{where}: {column} is {text!r}{did_you_mean(text, known)};"
            f" it may be {', '.join(known)} or empty."
        )
    return text
