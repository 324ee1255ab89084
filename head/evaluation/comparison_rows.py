"""The rows of a comparison (an encoder, magnifications and a head each), and what they add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mmap_st.errors import RequestError, did_you_mean
from mmap_st.extract.engine import RayRequest
from mmap_st.extract.windows import mpp_key
from mmap_st.head.evaluation.aggregate import Patients, gain
from mmap_st.head.evaluation.results import (
    FIRST_ENCODER,
    FIRST_MAGNIFICATIONS,
    REFERENCES,
    CommonProtocol,
    ComparisonResult,
    RowResult,
)
from mmap_st.head.interface import settings_values
from mmap_st.head.registry import head_method
from mmap_st.head.runs import FitRequest, fit_request
from mmap_st.head.scoring import FEWEST_FOR_TEST, PER_SLIDE, CorrectedDifference, Scores, holm

Mpps = tuple[float, ...]


@dataclass(frozen=True)
class CompareRequest:
    """A comparison of every encoder with every head at every set of magnifications.

    Attributes
    ----------
    encoders
        Names in the store.
    heads
        What each fits, its encoder and magnifications aside; in the order of the table.
    magnifications
        Sets to compare; (None,): those that are complete for every slide and encoder.
    folds, seeds, jobs, ray
        See `mmap_st.head.evaluation.folder.EvaluateRequest`.
    scatter
        Two rows to show gene by gene, ``ROW,ROW``; None: the first `mmap` and its `ridge`.
    joined
        Whether all encoders in one head are compared too.
    """

    encoders: tuple[str, ...]
    heads: tuple[FitRequest, ...]
    magnifications: tuple[Mpps | None, ...] = (None,)
    folds: str = "patient"
    seeds: tuple[int, ...] = (0,)
    jobs: int | None = None
    scatter: str | None = None
    joined: bool = False
    ray: RayRequest | None = None

    @property
    def encoders_of_rows(self) -> tuple[str, ...]:
        """The encoder of each row: one, or all of them."""
        return (*self.encoders, self.all_encoders) if self.joined else self.encoders

    @property
    def all_encoders(self) -> str:
        """The encoders that are joined, as one is called."""
        return ",".join(self.encoders)


@dataclass(frozen=True)
class Row:
    """One row of the comparison.

    Attributes
    ----------
    fit
        What each fold fits.
    mpps
        Its magnifications, finest first.
    key
        What it is called: ``ENCODER/HEAD``, and ``@0.5,1`` where sets of magnifications are compared.
    """

    fit: FitRequest
    mpps: Mpps
    key: str

    @property
    def head(self) -> str:
        """Name of its head."""
        return self.fit.method.name


def make_heads(
    names: Sequence[str],
    pairs: Sequence[str],
    protocol: str,
    prototypes: str | None = None,
    **others: Any,
) -> tuple[FitRequest, ...]:
    """Requests of heads by name.

    Parameters
    ----------
    names
        Of heads; none may be there twice.
    pairs
        Their settings, as ``HEAD.KEY=VALUE``.
    protocol
        By name.
    prototypes
        Setting of that name of the heads that have it; None: not given.
    others
        Attributes of every request.

    Raises
    ------
    RequestError
        If a head, a setting or the protocol is not known, or a setting is for a head that is not compared.
    """
    methods = [head_method(name) for name in names]
    given: dict[str, list[str]] = {method.name: [] for method in methods}
    if len(given) < len(methods):
        raise RequestError(f"--heads {','.join(names)}: name each head once.")
    for pair in pairs:
        head, dot, setting = pair.partition(".")
        if not dot or head not in given:
            raise RequestError(
                f"--set {pair}: give HEAD.KEY=VALUE, such as ridge.alpha=1e5; the heads are"
                f" {', '.join(given)}."
            )
        given[head].append(setting)
    if prototypes is not None:
        using = [m.name for m in methods if "prototypes" in settings_values(m.settings_type())]
        if not using:
            raise RequestError(f"--prototypes {prototypes}: none of the heads {', '.join(given)} uses any.")
        for head in using:
            given[head].append(f"prototypes={prototypes}")
    return tuple(
        fit_request("", method.reference, protocol, given[method.name], baselines=False, **others)
        for method in methods
    )


def make_rows(request: CompareRequest, mpps: Mapping[Mpps | None, Mpps]) -> list[Row]:
    """All rows, encoder by encoder.

    Parameters
    ----------
    mpps
        The magnifications of each requested set.
    """
    several = len(mpps) > 1
    rows = []
    for encoder in request.encoders_of_rows:
        for found in mpps.values():
            for head in request.heads:
                at = f"@{','.join(mpp_key(mpp).rstrip('0').rstrip('.') for mpp in found)}" if several else ""
                fit = replace(head, encoder=encoder, mpps=found)
                rows.append(Row(fit, found, f"{encoder}/{head.method.name}{at}"))
    return rows


def scatter_pair(rows: Sequence[Row], requested: str | None) -> tuple[str, str] | None:
    """Keys of the two rows that are shown gene by gene; None where none are requested or there to show.

    Raises
    ------
    RequestError
        If the request is not a pair of rows.
    """
    keys = [row.key for row in rows]
    if requested is not None:
        # Keys may contain commas, between magnifications.
        wanted = requested.replace(", ", ",").strip()
        pair = next(((a, b) for a in keys for b in keys if f"{a},{b}" == wanted), None)
        if pair is None:
            near = next((did_you_mean(key, keys) for key in wanted.split(",") if key not in keys), "")
            raise RequestError(f"--scatter {requested}: give two rows and a comma{near}; {', '.join(keys)}.")
        return pair
    for row in rows:
        for other in rows:
            if (row.head, other.head) == REFERENCES and (row.fit.encoder, row.mpps) == (
                other.fit.encoder,
                other.mpps,
            ):
                return row.key, other.key
    return None


def unevaluated_row(row: Row, reason: str) -> RowResult:
    """A row that does not apply, or failed."""
    return RowResult(row.key, row.fit.encoder, row.head, row.mpps, reason)


def evaluated_row(
    row: Row,
    scores: Scores,
    seconds: Mapping[str, float],
    parameters: int,
    agreement: Mapping[str, float | None],
) -> RowResult:
    """A row that was evaluated.

    Parameters
    ----------
    scores
        Of its head, on held-out slides.
    seconds
        ``fit`` and ``predict``, the mean over its fits.
    parameters
        How many numbers its head consists of.
    agreement
        Adjusted Rand index of each labelled slide.
    """
    known = [value for value in agreement.values() if value is not None]
    return replace(
        unevaluated_row(row, ""),
        reason=None,
        scores=scores,
        ari=float(np.mean(known)) if known else None,
        ari_slides=dict(agreement),
        parameters=parameters,
        seconds=dict(seconds),
    )


def compare_rows(
    rows: Sequence[RowResult], protocol: CommonProtocol | None, patients: Patients
) -> ComparisonResult:
    """Compare rows with each other.

    Parameters
    ----------
    rows
        In the order of the table.
    protocol
        Of a row that was evaluated; None where there is none.
    patients
        Of each slide.

    Returns
    -------
    The rows with their differences to the heads of `REFERENCES` of the same encoder and magnifications, to
    the same head of the `FIRST_ENCODER`, and to that at the `FIRST_MAGNIFICATIONS`. With 6 patients or more a
    difference has its interval; to `REFERENCES` also the p-value of the Wilcoxon test, and ``p_holm``:
    corrected for all rows that are compared with that head on that metric.
    """
    found = [_differences(row, rows, patients) for row in rows]
    for reference in REFERENCES:
        compared = [differences[reference] for differences in found if reference in differences]
        for metric in PER_SLIDE:
            corrected = holm([of_row[metric].p_value for of_row in compared])
            for of_row, p_holm in zip(compared, corrected, strict=True):
                of_row[metric] = replace(of_row[metric], p_holm=p_holm)
    compared_rows = (replace(row, differences=d) for row, d in zip(rows, found, strict=True))
    return ComparisonResult(protocol, tuple(compared_rows))


def _differences(
    row: RowResult, rows: Sequence[RowResult], patients: Patients
) -> dict[str, dict[str, CorrectedDifference]]:
    """How far a row lies above each of those that it is compared with, and that were evaluated."""
    found: dict[str, dict[str, CorrectedDifference]] = {}
    for name, other in _compared_with(row, rows).items():
        if other.key == row.key or row.scores is None or other.scores is None:
            continue
        found[name] = {
            metric: replace(
                CorrectedDifference(**asdict(apart)),
                interval=apart.interval if apart.patients >= FEWEST_FOR_TEST else None,
                p_value=apart.p_value if name in REFERENCES else None,
            )
            for metric, apart in gain(row.scores, other.scores, patients).items()
        }
    return found


def _compared_with(row: RowResult, rows: Sequence[RowResult]) -> dict[str, RowResult]:
    """The first row of each kind that a row is compared with."""

    def first(encoder: str | None, head: str, mpps: tuple[float, ...] | None) -> RowResult | None:
        same = (
            other
            for other in rows
            if other.head == head
            and encoder in (None, other.encoder)
            and mpps in (None, other.magnifications)
        )
        return next(same, None)

    found = {name: first(row.encoder, name, row.magnifications) for name in REFERENCES}
    found[FIRST_ENCODER] = first(None, row.head, row.magnifications)
    found[FIRST_MAGNIFICATIONS] = first(row.encoder, row.head, None)
    return {name: other for name, other in found.items() if other is not None}
