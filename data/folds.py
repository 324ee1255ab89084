"""Folds of a cohort for cross-validation: each slide is tested once, by heads that did not see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mmap_st.data.cohort import Cohort
from mmap_st.data.splits import Split, balanced_folds, shared_patients
from mmap_st.data.spots import some
from mmap_st.errors import SplitError, did_you_mean


@dataclass(frozen=True)
class Fold:
    """One split of a cross-validation, with a name that no other has."""

    name: str
    split: Split


def make_folds(cohort: Cohort, names: Sequence[str], text: str) -> tuple[str, tuple[Fold, ...]]:
    """Folds that ``--folds`` asks for.

    Parameters
    ----------
    names
        Slides of the cohort that can be used.
    text
        ``patient``: leave one patient out; ``patient:K``: K folds of whole patients, of about equal numbers
        of slides; ``slide``: leave one slide out; or a CSV file with the columns slide (or patient) and
        fold. Slides that a file does not name always train.

    Returns
    -------
    The rule in words, and the folds.

    Raises
    ------
    SplitError
        If the request is none of these, or there are fewer than two folds.
    """
    kind, colon, number = text.partition(":")
    if kind == "patient" and not Path(text).exists():
        groups = _by_patient(cohort, names)
        if not colon:
            return "leave one patient out", _leave_out(cohort, names, groups)
        if not number.isdecimal() or not 2 <= int(number) <= len(groups):
            raise SplitError(
                f"--folds {text}: give a number of folds from 2 to {len(groups)}, the number of patients."
            )
        folds = balanced_folds(groups, int(number))
        numbered = {str(i): fold for i, fold in enumerate(folds, start=1)}
        return f"{number} folds of patients", _leave_out(cohort, names, numbered)
    if text == "slide":
        return "leave one slide out", _leave_out(cohort, names, {name: (name,) for name in names})
    if Path(text).is_file():
        return f"file {Path(text).name}", _leave_out(cohort, names, _read_folds(cohort, names, Path(text)))
    raise SplitError(f"--folds {text}: give patient, patient:K, slide or a CSV file of slide and fold.")


def _by_patient(cohort: Cohort, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    unknown = [name for name in names if cohort[name].patient is None]
    if unknown:
        raise SplitError(
            f"folds are by patient, and {cohort.source} names none for {some(unknown)}; fill its column"
            " patient, or give --folds slide."
        )
    groups: dict[str, tuple[str, ...]] = {}
    for name in names:
        patient = str(cohort[name].patient)
        groups[patient] = (*groups.get(patient, ()), name)
    return groups


def _read_folds(cohort: Cohort, names: Sequence[str], path: Path) -> dict[str, tuple[str, ...]]:
    """Slides by fold, as a CSV file says."""
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SplitError(f"--folds {path} is no CSV file ({error}).") from error
    key = next((column for column in ("slide", "patient") if column in table.columns), None)
    if key is None or "fold" not in table.columns:
        raise SplitError(f"--folds {path} needs the columns slide (or patient) and fold.")
    if table[key].null_count() or table["fold"].null_count() or table[key].n_unique() < len(table):
        raise SplitError(f"--folds {path}: each {key} needs one row, and a fold in it.")
    fold_of = dict(zip(table[key].to_list(), table["fold"].to_list(), strict=True))
    known = cohort.names if key == "slide" else tuple(s.patient for s in cohort.slides if s.patient)
    unknown = [value for value in fold_of if value not in known]
    if unknown:
        raise SplitError(
            f"--folds {path}: {cohort.source} has no {key} {some(unknown)}{did_you_mean(unknown[0], known)}."
        )
    folds: dict[str, tuple[str, ...]] = dict.fromkeys(dict.fromkeys(fold_of.values()), ())
    for name in names:
        value = name if key == "slide" else cohort[name].patient
        if value in fold_of:
            folds[fold_of[value]] = (*folds[fold_of[value]], name)
    return {fold: slides for fold, slides in folds.items() if slides}


def _leave_out(cohort: Cohort, names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> tuple[Fold, ...]:
    """One fold a group: the group tests, and all other slides train."""
    folds = []
    for name, test in groups.items():
        train = tuple(slide for slide in names if slide not in test)
        if train:
            split = Split(train, (), tuple(test), shared_patients(cohort, train, test))
            folds.append(Fold(name, split))
    if len(folds) < 2:
        raise SplitError(
            "there are not two folds to test on; a cross-validation needs two or more patients (or, with"
            " --folds slide, slides)."
        )
    return tuple(folds)
