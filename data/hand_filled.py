"""What a person filled in in a cohort file, so that finding its slides again does not lose it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from mmap_st.data.cohort import COLUMNS, Cohort, known_patient, known_text
from mmap_st.data.tables import read_table, some
from mmap_st.errors import CohortError, WriteError

#: Columns that the files of a slide often leave to a person.
_BY_HAND = ("patient", "mpp", "mpp_from", "pitch_um", "labels")
_ADVICE = "give --overwrite to replace it, or name another file"


def refuse_to_lose(path: Path, cohort: Cohort) -> None:
    """Refuse to write a cohort over a file that holds what the cohort does not.

    Parameters
    ----------
    path
        The cohort file to write. What is not there, or empty, loses nothing.
    cohort
        What is to be written. Other images, tables, values and slides may come and go: they are found, or
        asked for by options.

    Raises
    ------
    WriteError
        If the file is no cohort, or has cells that a person filled in and that would be lost: of `_BY_HAND`,
        or of columns of their own.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        table = read_table(path, CohortError, once=COLUMNS).cast(pl.String)
    except (CohortError, pl.exceptions.PolarsError) as error:
        raise WriteError(f"--out {path} is there, and is no cohort; {_ADVICE}.") from error
    if "slide" not in table.columns:
        raise WriteError(f"--out {path} is there, and is no cohort: it has no column `slide`; {_ADVICE}.")
    lost = list(_lost(table, cohort))
    if lost:
        raise WriteError(f"--out {path} holds what would be lost ({some(lost)}); {_ADVICE}.")


def _lost(table: pl.DataFrame, cohort: Cohort) -> Iterator[str]:
    """The cells that would be lost, as ``patient P1 of S1``."""
    new = {slide.slide: slide for slide in cohort.slides}
    columns = [name for name in table.columns if name in _BY_HAND or name not in COLUMNS]
    for row in table.iter_rows(named=True):
        name = (row["slide"] or "").strip()
        for column in columns:
            text = known_patient(row[column]) if column == "patient" else known_text(row[column])
            found = getattr(new.get(name), column, None) if column in _BY_HAND else None
            kept = found is not None if column != "patient" else found == text
            if text is not None and not kept:
                yield f"{column} {text} of {name}"
