"""Splits of a cohort into training, validation and test slides, by patient unless slides are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.cohort import Cohort
from mmap_st.errors import SplitError, did_you_mean

_MOST_FOLDS = 5


@dataclass(frozen=True)
class Split:
    """Names of the slides that train, validate and test, each in the cohort's order.

    `shared_patients` lists patients who are in both training and test; only naming slides makes that so.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    shared_patients: tuple[str, ...] = field(default=())


def slides_where(cohort: Cohort, text: str) -> tuple[str, ...]:
    """Slides that WHERE names: ``patient=A,B``, ``slide=C5,C6`` or a file with one slide a line.

    Raises
    ------
    SplitError
        If WHERE is none of these, or names what the cohort does not have.
    """
    kind, equals, values = text.partition("=")
    if equals and kind in ("patient", "slide"):
        wanted = [value.strip() for value in values.split(",") if value.strip()]
        known = cohort.names if kind == "slide" else tuple(s.patient for s in cohort.slides if s.patient)
    elif Path(text).is_file():
        kind, known = "slide", cohort.names
        wanted = [line.strip() for line in Path(text).read_text("utf-8").splitlines() if line.strip()]
    else:
        raise SplitError(
            f"{text!r} names no slides; give patient=NAME, slide=NAME,NAME or a file with one slide a line."
        )
    if not wanted:
        raise SplitError(f"{text!r} names no {kind}.")
    unknown = [value for value in wanted if value not in known]
    if unknown:
        raise SplitError(
            f"{cohort.source} has no {kind} {', '.join(unknown)}{did_you_mean(unknown[0], set(known))}."
        )
    if kind == "patient":
        return cohort.of_patients(wanted)
    return tuple(name for name in cohort.names if name in wanted)


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
        both = [name for name in roles[first] if name in roles[second]]
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
    return Split(train_slides, val_slides, test_slides, shared)


def inner_folds(names: Sequence[str], patients: Sequence[str | None]) -> tuple[str, list[tuple[str, ...]]]:
    """Folds of the training slides for choices within them, and the rule that made them.

    By patient where at least 3 are known for all slides, else by slide where there are at least 2, else
    none: one slide is cut into `spatial_blocks`. At most 5 folds, of about equal numbers of slides.
    """
    known = [patient for patient in patients if patient is not None]
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
    for members in sorted(groups.values(), key=len, reverse=True):
        min(folds, key=len).extend(members)
    return [tuple(fold) for fold in folds]


def spatial_blocks(xy: NDArray[np.float64], blocks: int = 3) -> NDArray[np.int64]:
    """(n,) block of each spot: strips of equal numbers of spots across the slide's longer side."""
    longer = int(np.argmax(np.ptp(xy, axis=0)))
    rank = np.argsort(np.argsort(xy[:, longer], kind="stable"), kind="stable")
    strips: NDArray[np.int64] = rank * blocks // len(xy)
    return strips


def shared_patients(cohort: Cohort, fitted_on: Sequence[str], test: Sequence[str]) -> tuple[str, ...]:
    """Patients who have slides on both sides."""
    known = _patients(cohort, fitted_on)
    return tuple(patient for patient in _patients(cohort, test) if patient in known)


def _patients(cohort: Cohort, names: Sequence[str]) -> tuple[str, ...]:
    found = (cohort[name].patient for name in names)
    return tuple(dict.fromkeys(patient for patient in found if patient is not None))
