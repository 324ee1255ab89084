"""Scores of predictions as they are returned, shown and written; the one place of results as JSON.

A result is a frozen dataclass whose fields are the keys of its JSON object, in the order of the file. Numbers
that are not finite are null in a file and NaN in memory.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import (
    Any,
    Protocol,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

import numpy as np

from mmap_st.errors import HeadError, first_line
from mmap_st.files import is_nested_deeper, write_text

#: Metadata of a field that a file does not mention where it has its default.
OMITTED: Mapping[str, object] = types.MappingProxyType({"omitted": True})

T = TypeVar("T")
# Results have less than ten.
_MOST_LEVELS = 50


@runtime_checkable
class HasJsonForm(Protocol):
    """A result whose JSON object is not simply its fields in their order."""

    def json_form(self) -> Mapping[str, object]:
        """Keys and values of the JSON object; the values may be results themselves."""


def as_json(value: object) -> Any:
    """Plain dictionaries, lists and numbers for `json.dumps`; numbers that are not finite become None."""
    if isinstance(value, HasJsonForm):
        return as_json(value.json_form())
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(fields_of(value))
    if isinstance(value, Mapping):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def fields_of(record: Any, *names: str) -> dict[str, object]:
    """Fields of a dataclass by name (default: all, in their order), less those that are `OMITTED`."""
    by_name = {field.name: field for field in fields(record)}
    values = {name: getattr(record, name) for name in names or by_name}
    return {name: value for name, value in values.items() if not _is_left_out(by_name[name], value)}


def from_json(kind: type[T], content: object) -> T:
    """The result that a JSON object describes.

    Keys that `kind` does not have are ignored, and keys that the object does not have take their default:
    files of older and newer versions can be read.

    Raises
    ------
    TypeError
        If a key without a default is missing, or a value is of another type.
    """
    found: T = _parse(kind, content, kind.__name__)
    return found


def read_result(kind: type[T], path: Path) -> T:
    """Read a result from a JSON file.

    Raises
    ------
    HeadError
        If the file cannot be read, or does not hold such a result.
    """
    content = read_json(path)
    try:
        return from_json(kind, content)
    except TypeError as error:
        raise HeadError(f"{path} is damaged ({first_line(error)}).") from error


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object from a file.

    Raises
    ------
    HeadError
        If the file cannot be read, or does not hold one.
    """
    try:
        content: object = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HeadError(f"{path} cannot be read ({first_line(error)}).") from error
    if not isinstance(content, dict):
        raise HeadError(f"{path} cannot be read (it does not hold a JSON object).")
    if is_nested_deeper(content, _MOST_LEVELS):
        raise HeadError(f"{path} cannot be read (its JSON is nested more than {_MOST_LEVELS} levels deep).")
    return content


def write_json(path: Path, content: object) -> None:
    """Write a result, or other plain content, as readable JSON that is there whole or not at all."""
    write_text(path, json_text(content))


def json_text(content: object) -> str:
    """A result, or other plain content, as readable JSON that ends with a line end."""
    return json.dumps(as_json(content), indent=2) + "\n"


def _is_left_out(field: Field[Any], value: object) -> bool:
    if not field.metadata.get("omitted"):
        return False
    return value == (field.default_factory() if field.default_factory is not MISSING else field.default)


_hints = cache(get_type_hints)


def _parse(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`; the types are those that results have."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return value
    if origin is Union or origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        (kind,) = [argument for argument in arguments if argument is not type(None)]
        return _parse(kind, value, where)
    if is_dataclass(kind):
        return _parse_record(kind, value, where)
    if origin is tuple:
        _check(value, list, where)
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(
            _parse(k, inner, f"{where}[{i}]") for i, (k, inner) in enumerate(zip(kinds, value, strict=True))
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _check(value, dict, where)
        return {key: _parse(arguments[1], inner, f"{where}.{key}") for key, inner in value.items()}
    if kind is float:
        # A whole number stays one, so that it is written as it was read.
        number = float("nan") if value is None else _check(value, (int, float), where)
        if isinstance(number, int) and abs(number) > sys.float_info.max:
            raise TypeError(f"{where} is too large a number")
        return number
    return _check(value, kind, where)


def _parse_record(kind: Any, value: Any, where: str) -> Any:
    _check(value, dict, where)
    if hasattr(kind, "from_json_form"):
        value = kind.from_json_form(value)
    hints = _hints(kind)
    given = {
        field.name: _parse(hints[field.name], value[field.name], f"{where}.{field.name}")
        for field in fields(kind)
        if field.name in value
    }
    return kind(**given)


def _check(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{where} is {value!r:.40}")
    return value


#: Lower and upper end.
Interval: TypeAlias = tuple[float, float]

#: Metrics that each slide has, by their name in `Scores`: the field of `SlideScores`.
PER_SLIDE: Mapping[str, str] = {
    "pcc_slide": "pcc",
    "pcc_slide_hvg50": "pcc_hvg50",
    "mse": "mse",
    "mae": "mae",
}
_NAN = float("nan")


@dataclass(frozen=True)
class SlideScores:
    """Scores of one slide; of a cross-validation, means over seeds.

    Attributes
    ----------
    n_spots
        Spots with at least one gene that is measured and predicted.
    pcc
        Mean over genes of the Pearson correlation over spots, an undefined one counting 0.
    mse, mae
        Mean squared and mean absolute error on the targets' scale.
    undefined_genes
        Genes whose correlation is undefined.
    pcc_hvg50
        As `pcc`, of the 50 genes of the panel that vary most in training; NaN where the slide has none.
    fold
        The fold that tested the slide; None outside a cross-validation.
    patient
        Whose slide it is; None: not known.
    """

    n_spots: int
    pcc: float
    mse: float
    mae: float
    undefined_genes: float
    pcc_hvg50: float = _NAN
    fold: str | None = field(default=None, metadata=OMITTED)
    patient: str | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class PooledErrors:
    """Errors over all test spots together.

    Attributes
    ----------
    mse_pooled, mae_pooled
        Mean squared and mean absolute error of the values as they are.
    mse_zscored, mae_zscored
        After predictions and targets of each gene were brought to mean 0 and standard deviation 1 over all
        spots.
    """

    mse_pooled: float
    mae_pooled: float
    mse_zscored: float
    mae_zscored: float


@dataclass(frozen=True, repr=False)
class Scores:
    """Scores of one predictor on all test slides.

    Attributes
    ----------
    slides
        Of each slide, by name.
    pcc_slide, pcc_slide_hvg50, mse, mae
        Unweighted means over slides of `pcc`, `pcc_hvg50`, `mse` and `mae`.
    pcc_pooled
        Mean over genes of the correlation over all test spots together; of a cross-validation, a mean over
        folds.
    mse_pooled, mae_pooled, mse_zscored, mae_zscored
        See `PooledErrors`; None under protocols that do not report them.
    intervals
        95% interval over patients of each metric of `PER_SLIDE`, None with fewer than 3 patients. None as a
        whole outside a cross-validation.
    spread
        Standard deviation over seeds of each metric of `PER_SLIDE`; None with one seed.
    pcc_of_ceiling
        `pcc_slide` as a share of the noise ceiling, see `NoiseCeiling`; None where that is not known.
    """

    slides: Mapping[str, SlideScores]
    pcc_slide: float
    pcc_slide_hvg50: float
    pcc_pooled: float
    mse: float
    mae: float
    mse_pooled: float | None = field(default=None, metadata=OMITTED)
    mae_pooled: float | None = field(default=None, metadata=OMITTED)
    mse_zscored: float | None = field(default=None, metadata=OMITTED)
    mae_zscored: float | None = field(default=None, metadata=OMITTED)
    intervals: Mapping[str, Interval | None] | None = field(default=None, metadata=OMITTED)
    spread: Mapping[str, float] | None = field(default=None, metadata=OMITTED)
    pcc_of_ceiling: float | None = field(default=None, metadata=OMITTED)

    def __repr__(self) -> str:
        metrics = (*PER_SLIDE, "pcc_pooled")
        shown = ", ".join(f"{metric}={self.value(metric):.4g}" for metric in metrics)
        return f"Scores({shown}, slides={len(self.slides)})"

    def value(self, metric: str) -> float:
        """A metric by name, such as ``"pcc_slide"``."""
        found: float = getattr(self, metric)
        return found

    def of_slide(self, slide: str, metric: str) -> float:
        """One slide's share of a metric of `PER_SLIDE`; NaN where it is undefined."""
        found: float = getattr(self.slides[slide], PER_SLIDE[metric])
        return found

    def of_patients(self, metric: str) -> dict[str, float]:
        """A metric of `PER_SLIDE` as a mean over each patient's slides, by patient.

        A slide of a patient who is not known stands for itself. Means that are undefined are left out.
        """
        found: dict[str, list[float]] = {}
        for slide, scores in self.slides.items():
            whose = f"slide {slide}" if scores.patient is None else scores.patient
            found.setdefault(whose, []).append(self.of_slide(slide, metric))
        means = {whose: float(np.mean(values)) for whose, values in found.items()}
        return {whose: mean for whose, mean in means.items() if np.isfinite(mean)}

    def with_pooled(self, errors: PooledErrors) -> Scores:
        """These scores, and errors over all test spots together."""
        return replace(
            self,
            mse_pooled=errors.mse_pooled,
            mae_pooled=errors.mae_pooled,
            mse_zscored=errors.mse_zscored,
            mae_zscored=errors.mae_zscored,
        )

    def below(self, ceiling: NoiseCeiling | None) -> Scores:
        """These scores, and what share of the noise ceiling their PCC is."""
        if ceiling is None or not ceiling.pcc_slide > 0:
            return self
        return replace(self, pcc_of_ceiling=self.pcc_slide / ceiling.pcc_slide)

    def interval(self, metric: str) -> Interval | None:
        """Interval over patients of a metric; None where there is none."""
        return (self.intervals or {}).get(metric)

    def json_form(self) -> Mapping[str, object]:
        """Fields in the order of the files, which is another one for a cross-validation."""
        if self.intervals is None:
            return fields_of(self)
        first = ("slides", *PER_SLIDE, "pcc_pooled")
        return {**fields_of(self, *first), **fields_of(self)}


@dataclass(frozen=True)
class SlideCeiling:
    """The `pcc` and the `pcc_hvg50` of `SlideScores` that a perfect predictor would reach on a slide."""

    pcc: float
    pcc_hvg50: float


@dataclass(frozen=True)
class NoiseCeiling:
    """The correlation that a perfect predictor would reach: measured values hold the noise of counting.

    See `mmap_st.data.noise`.

    Attributes
    ----------
    pcc_slide, pcc_slide_hvg50
        Unweighted means over slides.
    slides
        Of each slide, by name.
    """

    pcc_slide: float
    pcc_slide_hvg50: float
    slides: Mapping[str, SlideCeiling]


@dataclass(frozen=True)
class PredictionIntervals:
    """How often prediction intervals hold the measured values of test slides.

    Attributes
    ----------
    level
        How often they should, from 0 to 1.
    calibrated_on
        Where their widths are from.
    patients
        How many patients they were calibrated on.
    coverage
        How often they do: a mean over slides.
    width
        Mean width on the targets' scale.
    slides
        Coverage of each slide.
    widened, condition
        How many times as wide as calibrated they are, and when they hold, in words.
    """

    level: float
    calibrated_on: str
    patients: int
    coverage: float
    width: float
    slides: Mapping[str, float]
    widened: float = field(default=1.0, metadata=OMITTED)
    condition: str = field(default="", metadata=OMITTED)

    @property
    def worst_slide(self) -> str | None:
        """The slide that they cover least; None without any."""
        return min(self.slides, key=lambda name: self.slides[name], default=None)
