"""What a person fills in in a cohort: patients by name, and what finding its slides again must not lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl

from mmap_st.data.cohort import COLUMNS, Cohort, known_patient, known_text
from mmap_st.data.tables import read_table, some
from mmap_st.errors import CohortError, WriteError, did_you_mean

#: Columns that the files of a slide often leave to a person.
_BY_HAND = ("patient", "mpp", "mpp_from", "pitch_um", "labels")
_ADVICE = "give --overwrite to replace it, or name another file"


def with_patients(cohort: Cohort, patient: str | Mapping[str, str]) -> Cohort:
    """The cohort with the patients that a user names.

    Parameters
    ----------
    patient
        One patient, of the slides whose files do not name theirs; or the patient of each of some slides, by
        the slide's name, whatever their files say.

    Raises
    ------
    CohortError
        If it is a word for an unknown patient, or the cohort has no such slide.
    """
    given = patient if isinstance(patient, Mapping) else dict.fromkeys(cohort.names, patient)
    named = {slide: known_patient(name) for slide, name in given.items()}
    for slide, name in given.items():
        if named[slide] is None:
            raise CohortError(f"--patient {name!r} names nobody; give a patient's name, such as P1.")
        if slide not in cohort:
            raise CohortError(
                f"--patient {slide}={name}: {cohort.source} has no slide {slide}"
                f"{did_you_mean(slide, cohort.names)}; its slides are {some(cohort.names)}."
            )
    takes = isinstance(patient, Mapping)
    return replace(
        cohort,
        slides=tuple(
            replace(row, patient=named[row.slide])
            if row.slide in named and (takes or row.patient is None)
            else row
            for row in cohort.slides
        ),
    )


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
