"""Text of tables: unpacked within a limit, decoded, and its separator found."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from mmap_st.data.tables.limits import largest_table
from mmap_st.data.tables.words import reading
from mmap_st.errors import MmapError

_GZIP = b"\x1f\x8b"
#: What a line takes in memory on top of its text, as a name and numbers of Python; a packed file may hold
#: any number of lines that are nearly empty.
_LINE_BYTES = 256
#: Characters of the first lines. Genes or spots are millions at most, and each cell takes more than its text.
_LONGEST = 1 << 26
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
#: Separators by suffix; the first is taken where others fit no better.
_SEPARATORS = {".csv": ",;\t", ".tsv": "\t,;", ".txt": "\t,; "}


@dataclass(frozen=True)
class Form:
    """How a table is written.

    Attributes
    ----------
    separator
        What stands between its cells.
    header
        Cells of its first line.
    short
        Whether the first line lacks the name of the first column, as R writes tables with row names; its
        name in `header` is empty then.
    extra
        Number of empty cells at the end of the first row for which the first line has no name.
    """

    separator: str
    header: tuple[str, ...]
    short: bool = False
    extra: int = 0


class _Within(io.RawIOBase):
    """A packed file as it is unpacked, up to a limit: a small file can become larger than any memory."""

    def __init__(self, packed: BinaryIO, path: Path, error: type[MmapError]) -> None:
        self._file = gzip.GzipFile(fileobj=packed)
        self._left = self._most = largest_table()
        self._path, self._error = path, error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        self._left -= len(data) + _LINE_BYTES * data.count(b"\n")
        if self._left < 0:
            raise self._error(
                f"{self._path} expands to more than {self._most / 1e9:,.1f} GB, a quarter of the free memory;"
                " check the file, or use a machine with more memory."
            )
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_bytes(path: Path, error: type[MmapError]) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked if it is gzipped, whatever its name says.

    Raises
    ------
    error
        Once more than `largest_table` bytes were read of a gzipped file.
    """
    with path.open("rb") as file:
        if file.peek(2)[:2] != _GZIP:
            yield file
            return
        with io.BufferedReader(_Within(file, path, error), 1 << 20) as unpacked:
            yield cast("BinaryIO", unpacked)


@contextmanager
def open_text(path: Path, error: type[MmapError]) -> Iterator[TextIO]:
    """The text of a file, gzipped or not: UTF-8, or UTF-16 with its mark, as spreadsheets write it."""
    with open_bytes(path, error) as file:
        start = cast("io.BufferedReader", file).peek(2)[:2]
        with io.TextIOWrapper(file, "utf-16" if start in _UTF_16 else "utf-8-sig", newline="") as text:
            yield text


def is_utf_16(path: Path, error: type[MmapError]) -> bool:
    """Whether a file begins with the mark of UTF-16."""
    with open_bytes(path, error) as file:
        return file.read(2) in _UTF_16


def read_header(path: Path, error: type[MmapError]) -> Form:
    """How a table is written, by its suffix and its first two rows.

    Raises
    ------
    error
        If it has no row at all.
    """
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    separators = _SEPARATORS.get(suffix, _SEPARATORS[".txt"])
    with reading(path, "a table", error):
        found = [(separator, _first_rows(path, error, separator)) for separator in separators]
    forms = [_form(rows, separator) for separator, rows in found if rows]
    if not forms:
        raise error(f"{path} is empty; copy it again.")
    # Of separators that split both rows alike the one that makes most cells; the suffix's own among equals.
    return max(forms, key=lambda form: form[1])[0]


def _first_rows(path: Path, error: type[MmapError], separator: str) -> list[list[str]]:
    """The first two rows that are not blank; a cell in quotes may hold line ends."""
    with open_text(path, error) as text:
        try:
            return list(islice(rows_of(_lines(text, path, error), separator), 2))
        except csv.Error:  # longer than any cell: this separator splits nothing
            pass
    with open_text(path, error) as text:
        lines = (line.rstrip("\r\n") for line in _lines(text, path, error) if line.strip())
        return [[line] for line in islice(lines, 2)]


def _lines(text: TextIO, path: Path, error: type[MmapError]) -> Iterator[str]:
    """The lines of a text, refused where one is longer than any of a table."""
    while line := text.readline(_LONGEST):
        if len(line) == _LONGEST:
            raise error(
                f"{path} has a line of more than {_LONGEST / 1e6:.0f} million characters, longer than that of"
                " any table; check the file."
            )
        yield line


def rows_of(text: Iterable[str], separator: str) -> Iterator[list[str]]:
    """The cells of each row that is not blank; `text` is read no further than the row."""
    return (row for row in csv.reader(text, delimiter=separator) if any(cell.strip() for cell in row))


def _form(found: list[list[str]], separator: str) -> tuple[Form, tuple[bool, bool, int]]:
    """How two rows read with a separator, and how likely it is the one."""
    header, *rows = found
    row = rows[0] if rows else header
    width = len(row)
    while width > len(header) and not row[width - 1]:
        width -= 1
    short = width == len(header) + 1 and len(header) > 1
    form = Form(separator, tuple(["", *header] if short else header), short, len(row) - width)
    return form, (len(header) > 1, width == len(header) or short, len(header))


def is_packed(file: BinaryIO) -> bool:
    """Whether a file of `open_bytes` is unpacked on the way."""
    return isinstance(getattr(file, "raw", None), _Within)
