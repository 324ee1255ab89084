"""Splits of a cohort into training, validation and test slides, and folds for cross-validation."""

from __future__ import annotations

import csv
import heapq
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.cohort import Cohort, alike_patients, patient_key
from mmap_st.data.tables import open_text, read_table, reading, some
from mmap_st.errors import SplitError, did_you_mean, first_line
from mmap_st.files import refuse_special

_MOST_FOLDS = 5


@dataclass(frozen=True)
class Split:
    """Names of the slides that train, validate and test, each in the cohort's order.

    Patients who are in both training (or validation) and test are in `shared_patients`, those in both
    training and validation in `shared_patients_validation`; only naming slides makes that so.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    shared_patients: tuple[str, ...] = ()
    shared_patients_validation: tuple[str, ...] = ()


def where_text(where: str | Mapping[str, str | Sequence[str]]) -> str:
    """WHERE as `slides_where` takes it, of a text or of a mapping.

    Parameters
    ----------
    where
        Such as ``{"slide": ["C2", "C3"]}`` or ``{"patient": "B"}``; a text is returned as it is.

    Raises
    ------
    SplitError
        If a mapping has another key, or several, or names nothing.

    Examples
    --------
    >>> where_text({"slide": ["C2", "C3"]})
    'slide=C2,C3'
    """
    if isinstance(where, str):
        return where
    if len(where) != 1 or not {*where} <= {"slide", "patient"}:
        raise SplitError(
            f"{dict(where)} names no slides; give {{'patient': [NAME, ...]}} or {{'slide': [NAME, ...]}}."
        )
    ((kind, names),) = where.items()
    names = [names] if isinstance(names, str) else [str(name) for name in names]
    if not names:
        raise SplitError(f"{dict(where)} names no {kind}.")
    text = io.StringIO()
    csv.writer(text).writerow(names)  # a name with a comma or a line end in it is put in quotes
    return f"{kind}={text.getvalue().removesuffix(csv.excel.lineterminator)}"


def slides_where(cohort: Cohort, text: str) -> tuple[str, ...]:
    """Slides that WHERE names: ``patient=A,B``, ``slide=C5,C6`` or a file with one slide per line.

    Raises
    ------
    SplitError
        If WHERE is none of these, or names what the cohort does not have.
    """
    kind, equals, values = text.partition("=")
    if equals and kind in ("patient", "slide"):
        wanted = [value.strip() for value in _names_of(values) if value.strip()]
        known = cohort.names if kind == "slide" else tuple(s.patient for s in cohort.slides if s.patient)
    elif os.path.isfile(text):
        kind, known = "slide", cohort.names
        with reading(Path(text), "text", SplitError), open_text(Path(text), SplitError) as lines:
            wanted = [line.strip() for line in lines.read().splitlines() if line.strip()]
    else:
        raise SplitError(
            f"{text!r} names no slides; give patient=NAME, slide=NAME,NAME or a file with one slide per line."
        )
    if not wanted:
        raise SplitError(f"{text!r} names no {kind}.")
    there = set(known)
    unknown = [value for value in wanted if value not in there]
    if unknown:
        raise SplitError(
            f"{cohort.source} has no {kind} {', '.join(unknown)}{did_you_mean(unknown[0], there)}."
        )
    if kind == "patient":
        return cohort.of_patients(wanted)
    named = set(wanted)
    return tuple(name for name in cohort.names if name in named)


def _names_of(values: str) -> list[str]:
    """Names between commas; one with a comma or a line end in it is in quotes."""
    try:
        return list(chain.from_iterable(csv.reader(io.StringIO(values, newline=""), skipinitialspace=True)))
    except csv.Error as error:
        raise SplitError(
            f"{values[:40]!r}... is no list of names ({first_line(error)}); give NAME,NAME."
        ) from error


def resolve_split(
    cohort: Cohort, train: str | None = None, validation: str | None = None, test: str | None = None
) -> Split:
    """Split a cohort as ``--train``, ``--val`` and ``--test`` ask.

    Without `train`, all slides train that the two others do not name, less every slide of a patient who is
    named by ``patient=``.

    Raises
    ------
    SplitError
        If a slide has two roles, or none is left to train.
    """
    val_slides = slides_where(cohort, validation) if validation else ()
    test_slides = slides_where(cohort, test) if test else ()
    if train:
        train_slides = slides_where(cohort, train)
    else:
        held_out = {*val_slides, *test_slides}
        train_slides = tuple(name for name in cohort.names if name not in held_out)
    roles = {"--train": train_slides, "--val": val_slides, "--test": test_slides}
    for first, second in (("--train", "--val"), ("--train", "--test"), ("--val", "--test")):
        of_second = set(roles[second])
        both = [name for name in roles[first] if name in of_second]
        if both:
            raise SplitError(f"{first} and {second} both name {', '.join(both)}; a slide has one role.")
    if not train_slides:
        raise SplitError("no slide is left to train on; name fewer in --test and --val.")
    shared = shared_patients(cohort, (*train_slides, *val_slides), test_slides)
    by_patient = [text for text in (train, validation, test) if text and text.startswith("patient=")]
    if shared and by_patient:
        raise SplitError(
            f"{by_patient[0]} asks for a split by patient, and patients {', '.join(shared)} would be in"
            " training and in test; name slides only, or patients only."
        )
    return split_of(cohort, train_slides, val_slides, test_slides)


def split_of(
    cohort: Cohort, train: Sequence[str], validation: Sequence[str] = (), test: Sequence[str] = ()
) -> Split:
    """A split, with the patients that its parts share."""
    return Split(
        tuple(train),
        tuple(validation),
        tuple(test),
        shared_patients(cohort, (*train, *validation), test),
        shared_patients(cohort, train, validation),
    )


def inner_folds(names: Sequence[str], patients: Sequence[str | None]) -> tuple[str, list[tuple[str, ...]]]:
    """Folds of the training slides for choices within them, and the rule that made them.

    By patient where at least 3 are known for all slides, else by slide where there are at least 2, else
    none: one slide is cut into `spatial_blocks`. At most 5 folds, of about equal numbers of slides.
    """
    known = [patient_key(patient) for patient in patients if patient is not None]
    groups: dict[str, list[str]] = {}
    if len(known) == len(names) and len(set(known)) >= 3:
        rule = "inner folds by patient"
        for name, patient in zip(names, known, strict=True):
            groups.setdefault(patient, []).append(name)
    elif len(names) >= 2:
        rule = "inner folds by slide"
        groups = {name: [name] for name in names}
    else:
        return "spatial blocks of the one slide", []
    return rule, balanced_folds(groups, min(_MOST_FOLDS, len(groups)))


def balanced_folds(groups: Mapping[str, Sequence[str]], number: int) -> list[tuple[str, ...]]:
    """Put whole groups of slides into `number` folds of about equal numbers of slides."""
    folds: list[list[str]] = [[] for _ in range(number)]
    # Of the smallest folds, the first: as pairs of size and place they are a heap.
    smallest = [(0, place) for place in range(number)]
    for members in sorted(groups.values(), key=len, reverse=True):
        size, place = smallest[0]
        folds[place].extend(members)
        heapq.heapreplace(smallest, (size + len(members), place))
    return [tuple(fold) for fold in folds]


def spatial_blocks(xy: NDArray[np.float64], blocks: int = 3) -> NDArray[np.int64]:
    """(n,) block of each spot: strips of equal numbers of spots across the slide's longer side."""
    longer = int(np.argmax(np.ptp(xy, axis=0)))
    rank = np.argsort(np.argsort(xy[:, longer], kind="stable"), kind="stable")
    strips: NDArray[np.int64] = rank * blocks // len(xy)
    return strips


def shared_patients(cohort: Cohort, fitted_on: Sequence[str], test: Sequence[str]) -> tuple[str, ...]:
    """Patients who have slides on both sides, in the order of `test`."""
    patient_of = _patient_of(cohort)
    # Names that differ in case only are likely one person's.
    fitted = {patient_key(patient) for name in fitted_on if (patient := patient_of[name]) is not None}
    return _distinct(
        patient for name in test if (patient := patient_of[name]) and patient_key(patient) in fitted
    )


def _patient_of(cohort: Cohort) -> dict[str, str | None]:
    return {slide.slide: slide.patient for slide in cohort.slides}


def _distinct(patients: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(patient for patient in patients if patient is not None))


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


def _by_patient(cohort: Cohort, names: Sequence[str]) -> dict[str, list[str]]:
    patient_of = _patient_of(cohort)
    unknown = [name for name in names if patient_of[name] is None]
    if unknown:
        raise SplitError(
            f"folds are by patient, and {cohort.source} names none for {some(unknown)}; fill its column"
            " patient, or give --folds slide."
        )
    alike = alike_patients(patient_of[name] for name in names)
    if alike:
        raise SplitError(f"folds are by patient, and {alike[0]}, and others names that differ more.")
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(str(patient_of[name]), []).append(name)
    return groups


def _read_folds(cohort: Cohort, names: Sequence[str], path: Path) -> dict[str, list[str]]:
    """Slides by fold, as a CSV file says."""
    refuse_special(path, SplitError, "--folds")
    table = read_table(path, SplitError, once=("slide", "patient", "fold"))
    key = next((column for column in ("slide", "patient") if column in table.columns), None)
    if key is None or "fold" not in table.columns:
        raise SplitError(f"--folds {path} needs the columns slide (or patient) and fold.")
    if table[key].null_count() or table["fold"].null_count() or table[key].n_unique() < len(table):
        raise SplitError(f"--folds {path}: each {key} needs one row, and a fold in it.")
    fold_of = dict(zip(table[key].to_list(), table["fold"].to_list(), strict=True))
    known = cohort.names if key == "slide" else tuple(s.patient for s in cohort.slides if s.patient)
    there = set(known)
    unknown = [value for value in fold_of if value not in there]
    if unknown:
        raise SplitError(
            f"--folds {path}: {cohort.source} has no {key} {some(unknown)}{did_you_mean(unknown[0], known)}."
        )
    folds: dict[str, list[str]] = {fold: [] for fold in fold_of.values()}
    patient_of = _patient_of(cohort)
    for name in names:
        value = name if key == "slide" else patient_of[name]
        if value in fold_of:
            folds[fold_of[value]].append(name)
    return {fold: slides for fold, slides in folds.items() if slides}


def _leave_out(cohort: Cohort, names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> tuple[Fold, ...]:
    """One fold per group: the group tests, and all other slides train."""
    patient_of = _patient_of(cohort)
    slides_of = Counter(patient_of[name] for name in names)
    folds = []
    for name, test in groups.items():
        held_out = set(test)
        train = tuple(slide for slide in names if slide not in held_out)
        if train:
            tested = Counter(patient_of[slide] for slide in test)
            # Some of these patients' slides are not for testing, hence for training.
            shared = _distinct(p for p in tested if slides_of[p] > tested[p])
            folds.append(Fold(name, Split(train, (), tuple(test), shared)))
    if len(folds) < 2:
        raise SplitError(
            "there are not two folds to test on; a cross-validation needs two or more patients (or, with"
            " --folds slide, slides)."
        )
    return tuple(folds)
