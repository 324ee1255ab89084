"""The one interface of all heads, their settings, and the limits of time and memory of a fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import inner_folds, spatial_blocks
from mmap_st.errors import HeadError, did_you_mean, first_line
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.settings import read_setting, whole_number
from mmap_st.progress import ProgressCallback


@dataclass(frozen=True)
class Limits:
    """The largest number of spots that each step uses, over all slides; larger sets are subsampled evenly.

    Attributes
    ----------
    attention
        To train learned attention on.
    epoch
        In one epoch of a network.
    validation
        To choose hyperparameters (strength, number of epochs) by.
    block
        Computed at once, of one slide.
    """

    attention: int = 102_400
    epoch: int = 51_200
    validation: int = 25_600
    block: int = 4_096


LIMITS: Limits = Limits()


Row = TypeVar("Row", bound=Mapping[str, float])

# Scores this close to the best, relative to it, count as equally good.
_PCC_TOLERANCE = 0.02


def best_of(rows: Sequence[Row]) -> Row:
    """Return the row of least squared error among those whose per-slide PCC is within 2% of the best.

    PCC alone does not see the scale of a prediction: it stays the same as a penalty shrinks all predictions
    towards the mean, and would choose the strongest penalty.

    Parameters
    ----------
    rows
        With ``validation_pcc`` and ``validation_mse``; at least one. The first of several equally good rows
        is returned; rows whose scores are not numbers are left out.

    Raises
    ------
    HeadError
        If no row has scores that are numbers.
    """
    known = [row for row in rows if np.isfinite([row["validation_pcc"], row["validation_mse"]]).all()]
    if not known:
        raise HeadError(
            "no validation score is a finite number, so that nothing can be chosen by them; check that the"
            " targets and embeddings of the validation slides are finite."
        )
    best = max(row["validation_pcc"] for row in known)
    good = [row for row in known if row["validation_pcc"] >= best - _PCC_TOLERANCE * abs(best)]
    return min(good, key=lambda row: row["validation_mse"])


# Predicted values (spots x genes) that intervals are calibrated on, at most.
_MAX_CALIBRATION_VALUES = 1 << 25

#: Saved tensors with this in their name hold training spots that a head refers to; they are not parameters.
SPOTS = "spots_"
#: Raised when the numbers of any head change: an evaluation that was started with others is not resumed.
ALGORITHM_VERSION = 1

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class HeldOut:
    """Predictions of some spots of a slide, made by a fit that did not see them.

    Attributes
    ----------
    slide
        With targets.
    rows
        (k,) int64, which of its spots.
    predicted
        (k, G) float32.
    """

    slide: HeadSlide
    rows: NDArray[np.int64]
    predicted: NDArray[np.float32]

    def target(self, genes: slice = slice(None)) -> NDArray[np.float32]:
        """(k, g) float32 measured values of some genes, NaN where undefined."""
        return self.slide.targets.dense(self.rows, genes)


class FittedHead(Protocol):
    """A trained head.

    Attributes
    ----------
    history
        Validation scores, one row for each value or epoch that was tried.
    chosen
        The hyperparameters that were chosen by them.
    """

    history: list[dict[str, float]]

    @property
    def chosen(self) -> Mapping[str, object]:
        """Names and values."""
        ...

    def predict(self, slide: HeadSlide) -> NDArray[np.float32]:
        """(n, G) float32 expression on the scale of the targets; rows of invalid spots are NaN."""
        ...

    def tensors(self) -> Tensors:
        """Return its weights, by name."""
        ...

    def held_out(self) -> Sequence[HeldOut]:
        """Return predictions of the training spots by the fits of the inner folds.

        Only a head that was just fitted has them. There are none where separate slides validate.
        """
        ...


@dataclass(frozen=True)
class Validation:
    """How hyperparameters are chosen without the test slides.

    Attributes
    ----------
    rule
        In words, for metrics.json.
    folds
        One pair (slides to fit, slides to validate on) for each fold.
    refit
        True: the final fit is on all training slides. False: it is the fit of the one fold.
    """

    rule: str
    folds: tuple[tuple[tuple[HeadSlide, ...], tuple[HeadSlide, ...]], ...]
    refit: bool

    @property
    def unseen_patients(self) -> int:
        """How many known patients have spots that were predicted by fits on other patients alone."""
        found = set()
        for fitted, left_out in self.folds:
            seen = {slide.patient for slide in fitted}
            # Slides of whom nobody knows could be of anybody.
            if None not in seen:
                found |= {slide.patient for slide in left_out} - seen - {None}
        return len(found)

    def row_folds(self, train: Sequence[HeadSlide]) -> list[NDArray[np.int64]]:
        """(n,) int64 fold number of every spot of each training slide, for fits that leave one fold out.

        The folds are those of `folds`. Where separate slides validate, they are those that would be used
        without them.
        """
        if not self.refit:
            try:
                return plan_validation(train, ()).row_folds(train)
            except HeadError:  # one slide with too few spots to split: they are one fold
                return [np.zeros(len(slide), np.int64) for slide in train]
        if len(train) == 1:
            return [spatial_blocks(train[0].xy)]
        fold_of = {s.name: number for number, (_, validation) in enumerate(self.folds) for s in validation}
        return [np.full(len(slide), fold_of[slide.name]) for slide in train]


@dataclass(frozen=True)
class HeadMethod:
    """A kind of head: how one is trained, and how a trained one is loaded.

    Attributes
    ----------
    name
        Its name for ``--head``.
    settings_type
        Frozen dataclass of its settings, with defaults.
    fit
        Function of (training slides, validation, settings, seed, progress) that returns a fitted head;
        `progress` takes one line about what is being done now.
    load
        Function of (tensors, settings, shape) that returns a fitted head.
    embeddings
        How it normalises embeddings, for head.json.
    tokens
        Whether it needs the grid of tokens of each spot, see `mmap_st.head.inputs.HeadSlide`.
    seeded
        Whether its numbers depend on the seed; a comparison fits a head that does not with one seed only.
    source, code
        Of a user's head: ``FILE.py:NAME`` if it is defined in a file, and the sha256 of its code.
    local
        Whether it is registered in this process only: no other process can find it.
    summary
        What it does, in one line, for `mmap heads`.
    """

    name: str
    settings_type: type[Any]
    fit: Callable[[Sequence[HeadSlide], Validation, Any, int, ProgressCallback], FittedHead]
    load: Callable[[Tensors, Any, Shape], FittedHead]
    embeddings: str = "standardised within each slide"
    tokens: bool = False
    seeded: bool = True
    source: str = ""
    code: str = ""
    local: bool = False
    summary: str = ""

    @property
    def reference(self) -> str:
        """The name or ``FILE.py:NAME`` that finds it again."""
        return self.source or self.name


@dataclass(frozen=True)
class Shape:
    """Magnifications M, embedding width d, genes G, and width t of tokens (0: the head does not use them)."""

    magnifications: int
    width: int
    genes: int
    token_width: int = 0


def plan_validation(
    train: Sequence[HeadSlide], validation: Sequence[HeadSlide], *, by_slide: bool = False
) -> Validation:
    """Decide how hyperparameters are chosen: on the validation slides if there are any, else by inner folds.

    Parameters
    ----------
    train, validation
        Slides with targets; `validation` may be empty.
    by_slide
        Make folds of slides even where there are enough patients.

    Raises
    ------
    HeadError
        If no spot can be trained or validated on.
    """
    train = [slide for slide in train if slide.usable.any()]
    if not train:
        raise HeadError("no training spot has both a valid embedding and a target; check the counts.")
    if validation:
        validation = [slide for slide in validation if slide.usable.any()]
        if not validation:
            raise HeadError("no validation spot has both a valid embedding and a target; check the counts.")
        return Validation("validation slides", ((tuple(train), tuple(validation)),), refit=False)
    patients = [None if by_slide else slide.patient for slide in train]
    rule, folds = inner_folds([slide.name for slide in train], patients)
    if folds:
        pairs = [
            (
                tuple(s for s in train if s.name not in fold),
                tuple(s for s in train if s.name in fold),
            )
            for fold in folds
        ]
        return Validation(rule, tuple(pairs), refit=True)
    (slide,) = train
    blocks = spatial_blocks(slide.xy)
    pairs = [((slide.rows(blocks != block),), (slide.rows(blocks == block),)) for block in np.unique(blocks)]
    pairs = [(a, b) for a, b in pairs if a[0].usable.any() and b[0].usable.any()]
    if not pairs:
        raise HeadError("the one training slide has too few spots to choose by; add slides.")
    return Validation(rule, tuple(pairs), refit=True)


def cross_fit(validation: Validation, without: Callable[[int], FittedHead]) -> list[HeldOut]:
    """Predict the spots of each inner fold by the head that was fitted without it.

    Parameters
    ----------
    validation
        The folds; there are no predictions where separate slides validate.
    without
        Function of a fold's number that returns the head fitted on the other folds.
    """
    if not validation.refit:
        return []
    slides_of_folds = [slide for _, slides in validation.folds for slide in slides]
    spots = sum(int(slide.usable.sum()) for slide in slides_of_folds)
    step = subsample_step(spots, slides_of_folds[0].targets.genes)
    return [
        predict_held_out(head, slide, step)
        for number, (_, slides) in enumerate(validation.folds)
        for head in [without(number)]
        for slide in slides
    ]


def predict_held_out(head: FittedHead, slide: HeadSlide, step: int) -> HeldOut:
    """Predict every `step`-th usable spot of a slide that the head was not fitted on."""
    rows = np.flatnonzero(slide.usable)[::step]
    return HeldOut(slide, rows, head.predict(slide)[rows])


def subsample_step(spots: int, genes: int) -> int:
    """Step between the spots that calibration uses, so that it needs at most a few hundred MB."""
    return -(-spots * genes // _MAX_CALIBRATION_VALUES)


def parse_settings(method: HeadMethod, pairs: Sequence[str]) -> Any:
    """Read ``--set KEY=VALUE`` pairs as the settings of a head.

    Raises
    ------
    HeadError
        If a key is not a setting of the head, or a value has the wrong type.
    """
    kinds = get_type_hints(method.settings_type)
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or key not in kinds:
            raise HeadError(
                f"--set {pair}: the head {method.name} has no setting {key!r}{did_you_mean(key, kinds)};"
                f" it has {', '.join(kinds) or 'none'}."
            )
        values[key] = read_setting(text.strip(), kinds[key], f"--set {pair}")
    return make_settings(method, values)


def make_settings(method: HeadMethod, values: Mapping[str, Any]) -> Any:
    """Make the settings of a head from plain values.

    Raises
    ------
    HeadError
        If a value is not allowed.
    """
    kinds = get_type_hints(method.settings_type)
    checked = {key: whole_number(value, kinds.get(key), key) for key, value in values.items()}
    try:
        return method.settings_type(**checked)
    except (ValueError, TypeError) as error:
        raise HeadError(f"The head {method.name} has invalid settings: {first_line(error)}.") from error


def saved_settings(method: HeadMethod, values: Mapping[str, Any]) -> Any:
    """Make the settings of a head from those of a run; those that it does not name are as they were then.

    Raises
    ------
    HeadError
        If a value is not allowed.
    """
    return make_settings(method, {**_former(method.settings_type), **values})


def settings_values(settings: Any) -> dict[str, Any]:
    """Return settings as plain values, for head.json."""
    return dataclasses.asdict(settings)


def settings_to_compare(settings: Any) -> dict[str, Any]:
    """Settings as plain values, without those that are as in versions that did not know them.

    Two requests are the same if these are, whichever version made them.
    """
    former = _former(type(settings))
    return {
        key: value
        for key, value in settings_values(settings).items()
        if key not in former or value != former[key]
    }


def _former(settings_type: type[Any]) -> Mapping[str, Any]:
    """``FORMER`` of a settings class: settings that were added later, as they were in runs without them."""
    found: Mapping[str, Any] = getattr(settings_type, "FORMER", {})
    return found
