"""What is compared: rows of one encoder, one set of magnifications and one head each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmap_st.errors import RequestError, did_you_mean
from mmap_st.extract.windows import mpp_key
from mmap_st.head.evaluation.results import REFERENCES
from mmap_st.head.interface import settings_values
from mmap_st.head.registry import head_method
from mmap_st.head.runs import FitRequest, fit_request

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
    folds, seeds, jobs
        See `mmap_st.head.evaluation.folder.EvaluateRequest`.
    scatter
        Two rows to show gene by gene, ``ROW,ROW``; None: the first `mmap` and its `ridge`.
    """

    encoders: tuple[str, ...]
    heads: tuple[FitRequest, ...]
    magnifications: tuple[Mpps | None, ...] = (None,)
    folds: str = "patient"
    seeds: tuple[int, ...] = (0,)
    jobs: int | None = None
    scatter: str | None = None


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
    for encoder in request.encoders:
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
