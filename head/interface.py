"""The one interface of all heads, their settings, and the limits of time and memory of a fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import inner_folds, spatial_blocks
from mmap_st.errors import HeadError, did_you_mean
from mmap_st.head.inputs import HeadSlide


@dataclass(frozen=True)
class Limits:
    """Most spots that a step looks at, all slides together; taken evenly where there are more.

    Attributes
    ----------
    attention
        Learned attention is trained on.
    epoch
        One epoch of it sees.
    judged
        Choices (strength, number of epochs) are made by.
    block
        Are computed at once, of one slide.
    """

    attention: int = 102_400
    epoch: int = 51_200
    judged: int = 25_600
    block: int = 4_096


LIMITS = Limits()


Row = TypeVar("Row", bound=Mapping[str, float])

_PCC_TOLERANCE = 0.02


def best_of(rows: Sequence[Row]) -> Row:
    """Among those whose per-slide PCC is within 2% of the best, that of least squared error.

    PCC alone does not see the scale of a prediction: it stays level as a penalty shrinks all predictions
    towards the mean, and would choose the strongest.

    Parameters
    ----------
    rows
        With ``validation_pcc`` and ``validation_mse``; at least one. Of equals, the first is taken.
    """
    best = max(row["validation_pcc"] for row in rows)
    good = [row for row in rows if row["validation_pcc"] >= best - _PCC_TOLERANCE * abs(best)]
    return min(good, key=lambda row: row["validation_mse"])


# Of predictions that intervals are calibrated on.
_MOST_ENTRIES = 1 << 25

#: Tensors with this in their name hold training spots that a head refers to: saved, and no parameters.
SPOTS = "spots_"
#: Raised when the numbers of any head change: an evaluation that was begun with others is not gone on with.
ALGORITHM_VERSION = 1

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class HeldOut:
    """Predictions of some spots of a slide, by a fit that did not see them.

    Attributes
    ----------
    slide
        With targets.
    rows
        (k,) which of its spots.
    predicted
        (k, G) float32.
    """

    slide: HeadSlide
    rows: NDArray[np.int64]
    predicted: NDArray[np.float32]

    def target(self, genes: slice = slice(None)) -> NDArray[np.float32]:
        """(k, g) of some genes, NaN where undefined."""
        return self.slide.targets.dense(self.rows, genes)


class FittedHead(Protocol):
    """A trained head.

    Attributes
    ----------
    history
        What the choices were made by: one row a tried value or epoch.
    chosen
        What was chosen within the training slides.
    """

    history: list[dict[str, float]]
    chosen: dict[str, Any]

    def predict(self, slide: HeadSlide) -> NDArray[np.float32]:
        """(n, G) expression on the targets' scale; rows of spots that are not valid are NaN."""
        ...

    def tensors(self) -> Tensors:
        """Its weights, by name."""
        ...

    def held_out(self) -> Sequence[HeldOut]:
        """Predictions of the training spots by fits of the inner folds, with what was chosen.

        Only a head that was just fitted has them; where other slides validate, there are none.
        """
        ...


@dataclass(frozen=True)
class Validation:
    """How choices are made without the test slides.

    Attributes
    ----------
    rule
        In words, for metrics.json.
    folds
        (fitted on, judged on), one pair a fold.
    refit
        Whether the final fit is on all training slides, or is that of the one fold.
    """

    rule: str
    folds: tuple[tuple[tuple[HeadSlide, ...], tuple[HeadSlide, ...]], ...]
    refit: bool

    def row_folds(self, train: Sequence[HeadSlide]) -> list[NDArray[np.int64]]:
        """(n,) number of the fold of every spot of each training slide, for fits that leave one fold out.

        The folds are those that are judged on; where slides of their own validate, those that would be.
        """
        if not self.refit:
            try:
                return plan_validation(train, ()).row_folds(train)
            except HeadError:  # one slide of so few spots that they cannot be parted: they are one fold
                return [np.zeros(len(slide), np.int64) for slide in train]
        if len(train) == 1:
            return [spatial_blocks(train[0].xy)]
        fold_of = {s.name: number for number, (_, judged) in enumerate(self.folds) for s in judged}
        return [np.full(len(slide), fold_of[slide.name]) for slide in train]


@dataclass(frozen=True)
class HeadMethod:
    """One way to predict: how it is trained, and how a trained one is loaded.

    Attributes
    ----------
    name
        What ``--head`` calls it.
    settings_type
        Frozen dataclass of its settings, with defaults.
    fit
        (training slides, validation, settings, seed, tell) to a fitted head; `tell` hears of progress.
    load
        (tensors, settings, shape) to a fitted head; shape holds M, d and G.
    embeddings
        How it normalises embeddings, for head.json.
    tokens
        Whether it needs the grid of tokens of each spot, see `mmap_st.head.inputs.HeadSlide`.
    seeded
        Whether its numbers depend on the seed: a comparison fits others with one seed alone.
    source, code
        Of a user's own: ``FILE.py:NAME`` if it is from a file, and the sha256 of its code.
    """

    name: str
    settings_type: type[Any]
    fit: Callable[[Sequence[HeadSlide], Validation, Any, int, Callable[[str], None]], FittedHead]
    load: Callable[[Tensors, Any, Shape], FittedHead]
    embeddings: str = "standardised within each slide"
    tokens: bool = False
    seeded: bool = True
    source: str = ""
    code: str = ""

    @property
    def reference(self) -> str:
        """What it is found again by."""
        return self.source or self.name


@dataclass(frozen=True)
class Shape:
    """Magnifications M, embedding width d and genes G of a head; t, width of a token, where it needs some."""

    magnifications: int
    width: int
    genes: int
    token_width: int = 0


def plan_validation(
    train: Sequence[HeadSlide], validation: Sequence[HeadSlide], *, by_slide: bool = False
) -> Validation:
    """Settle how choices are made: on the validation slides if there are any, else by inner folds.

    `by_slide` asks for folds of slides even where there are patients enough.
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
    """Predict the spots of each inner fold by the head `without` it; none where other slides validate."""
    if not validation.refit:
        return []
    judged = [slide for _, slides in validation.folds for slide in slides]
    step = thinned(sum(int(slide.usable.sum()) for slide in judged), judged[0].targets.genes)
    return [
        held_out_by(head, slide, step)
        for number, (_, slides) in enumerate(validation.folds)
        for head in [without(number)]
        for slide in slides
    ]


def held_out_by(head: FittedHead, slide: HeadSlide, step: int) -> HeldOut:
    """What a head predicts of every `step`-th usable spot of a slide that it did not see."""
    rows = np.flatnonzero(slide.usable)[::step]
    return HeldOut(slide, rows, head.predict(slide)[rows])


def thinned(spots: int, genes: int) -> int:
    """How many spots to take one of, so that calibration holds no more than some hundred MB."""
    return -(-spots * genes // _MOST_ENTRIES)


def parse_settings(method: HeadMethod, pairs: Sequence[str]) -> Any:
    """Read ``--set KEY=VALUE`` pairs as the settings of a head.

    Raises
    ------
    HeadError
        If a key is not one of the head's, or a value is not of its kind.
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
        values[key] = _parse_value(text.strip(), kinds[key], f"--set {pair}")
    return make_settings(method, values)


def make_settings(method: HeadMethod, values: Mapping[str, Any]) -> Any:
    """Settings of a head from plain values, checked by the settings themselves."""
    try:
        return method.settings_type(**values)
    except (ValueError, TypeError) as error:
        raise HeadError(f"The head {method.name} cannot take its settings: {error}.") from error


def settings_values(settings: Any) -> dict[str, Any]:
    """Settings as plain values, for head.json."""
    return dataclasses.asdict(settings)


def _parse_value(text: str, kind: Any, where: str) -> Any:
    options = getattr(kind, "__args__", (kind,))
    if type(None) in options and text in ("auto", "none", ""):
        return None
    if bool in options and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for option in (int, float):
        if option in options:
            try:
                number = option(text)
            except ValueError:
                continue
            if np.isfinite(number):
                return number
    if str in options:
        return text
    raise HeadError(f"{where}: {text!r} is not a number; give one such as {where.split('=')[0][6:]}=0.1.")
