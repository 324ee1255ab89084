"""The rows of a table that are the spots of one section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.readers.annotated.parts import SpotTable
from mmap_st.data.spots import some
from mmap_st.errors import SpotsError, did_you_mean

if TYPE_CHECKING:
    from pandas import Series

# Columns that tell sections apart after a concatenation; `batch` is what anndata wrote by itself.
_OF_SECTIONS = (
    "library_id", "sample_id", "slide_id", "section_id", "library", "sample", "slide", "section", "slice",
    "slice_id", "sample_name", "section_name", "library_key", "batch", "orig.ident",
)  # fmt: skip
_IN_TISSUE = "in_tissue"
_YES, _NO = ("1", "true", "yes"), ("0", "false", "no")


@dataclass(frozen=True)
class Section:
    """Which rows of a table are its spots.

    Attributes
    ----------
    rows
        (rows of ``obs``,) those of the section that are on tissue.
    library
        What ``uns["spatial"]`` says of it.
    notes
        What the user should know about how they were chosen.
    """

    rows: NDArray[np.bool_]
    library: Mapping[str, object]
    notes: tuple[str, ...]


def section_of(table: SpotTable, where: str | None) -> Section:
    """The spots of the one section of a table, or of the one that `where` chooses.

    Parameters
    ----------
    table
        What was read.
    where
        A column of ``obs`` and its value, such as ``batch=A``; None where there is one section only.

    Raises
    ------
    SpotsError
        If there are several sections and none is chosen, or no row is left.
    """
    on_tissue, notes = _on_tissue(table)
    if where is None:
        column, names = sections_of(table)
        if len(names) > 1:
            raise SpotsError(
                f"{table.source} holds {len(names)} sections according to obs[{column!r}] ({some(names)});"
                f" choose one by the cohort's column where, such as {column}={names[0]}, or write one file"
                " per section."
            )
        rows, chosen = np.ones(len(table.obs), np.bool_), names[0] if names else None
    else:
        rows, chosen = _chosen(table, where)
    off = int((rows & ~on_tissue).sum())
    if off and not (rows & on_tissue).any():
        raise SpotsError(
            f"{table.source} says of every spot that it is not on tissue (in_tissue is 0); correct that"
            " column or remove it."
        )
    if off:
        notes = (*notes, f"spots beside the tissue (in_tissue 0), left out: {off}")
    return Section(rows & on_tissue, _library(table, chosen), notes)


def sections_of(table: SpotTable) -> tuple[str, list[str]]:
    """The column of ``obs`` that tells the sections of a table apart best, and its values in order.

    Without such a column both are empty.
    """
    found: dict[str, list[str]] = {}
    for column in [*_columns_of_libraries(table), *_OF_SECTIONS]:
        if column in table.obs.columns:
            labels = _labels(table.obs[column])
            names = list(dict.fromkeys(label for label in labels if label))
            # A name for every row is the spots' own, not that of a section.
            if names and (len(names) < len(labels) or len(labels) == 1):
                found.setdefault(column, names)
    if not found:
        return "", []
    column = max(found, key=lambda name: len(found[name]))
    return column, found[column]


def _chosen(table: SpotTable, where: str) -> tuple[NDArray[np.bool_], str | None]:
    column, equals, value = (part.strip() for part in where.partition("="))
    if not equals or not column or not value:
        raise SpotsError(
            f"{table.source}: the cohort's column where is {where!r}; give a column of obs and a value, such"
            " as batch=A."
        )
    if column not in table.obs.columns:
        columns = [str(name) for name in table.obs.columns]
        raise SpotsError(
            f"{table.source} has no column {column!r} in obs{did_you_mean(column, columns)}, which the"
            " cohort's column where names."
        )
    labels = _labels(table.obs[column])
    rows = np.array([label == value for label in labels], np.bool_)
    if not rows.any():
        names = list(dict.fromkeys(label for label in labels if label))
        raise SpotsError(
            f"{table.source}: no spot has {value!r} in obs[{column!r}], as the cohort's column where asks; it"
            f" has {some(names)}."
        )
    other = next((c for c in _columns_of_libraries(table) if c in table.obs.columns), None)
    if other is not None:
        libraries = {label for label in _labels(table.obs[other][rows]) if label}
        return rows, libraries.pop() if len(libraries) == 1 else value
    return rows, value


def _columns_of_libraries(table: SpotTable) -> list[str]:
    """Columns of ``obs``, under any name, whose values are keys of ``uns["spatial"]``."""
    libraries = set(table.libraries)
    if not libraries:
        return []
    found = []
    for column in table.obs.columns:
        values = table.obs[column]
        if str(values.dtype) in ("object", "category", "string", "str"):
            names = {str(value).strip() for value in values.dropna().unique()}
            if names and names <= libraries:
                found.append(str(column))
    return found


def _library(table: SpotTable, chosen: str | None) -> Mapping[str, object]:
    libraries = table.libraries
    if chosen is not None and chosen in libraries:
        return libraries[chosen]
    if len(libraries) > 1 and chosen is None:
        raise SpotsError(
            f"{table.source} has {len(libraries)} sections in uns['spatial'] ({some(list(libraries))}) and no"
            " column of obs that says which one a spot is of; add obs['library_id'], or remove the others"
            " from uns['spatial']."
        )
    return next(iter(libraries.values())) if len(libraries) == 1 else {}


def _on_tissue(table: SpotTable) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Rows that are not said to be beside the tissue, as they are in unfiltered matrices of Space Ranger."""
    every = np.ones(len(table.obs), np.bool_)
    if _IN_TISSUE not in table.obs.columns:
        return every, ()
    words = [None if label is None else label.lower() for label in _labels(table.obs[_IN_TISSUE])]
    if not {word for word in words if word} <= {*_YES, *_NO}:
        return every, ("obs['in_tissue'] is neither 0 nor 1 everywhere and was not used",)
    return np.array([word not in _NO for word in words], np.bool_), ()


def _labels(column: Series[Any]) -> list[str | None]:
    """Values as text; None for missing ones. Whole numbers next to missing ones are read as floats."""
    missing = column.isna().to_numpy()
    return [None if gone else _label(value) for value, gone in zip(column.tolist(), missing, strict=True)]


def _label(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
