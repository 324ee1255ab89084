"""Requests for a fit, and the named evaluation protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mmap_st.data import DEFAULT_PANEL, INTERSECTION, LOG1P_COUNTS, LOG10_PANEL, LOG10_PANEL_SMOOTHED
from mmap_st.errors import HeadError, RequestError, did_you_mean
from mmap_st.head.interface import HeadMethod, make_settings, parse_settings, settings_values
from mmap_st.head.registry import head_method


@dataclass(frozen=True)
class EvaluationProtocol:
    """What a protocol changes.

    Attributes
    ----------
    name
        What ``--protocol`` calls it.
    head, genes, mpps
        Head, panel and magnifications where none are requested; no magnifications: all that are complete.
    normalisation
        Of the targets; None: what suits the tables.
    panel_on_all_slides
        Whether the panel is chosen on all slides of the split, not on those of training alone.
    test
        WHERE of the test slides unless ``--test`` is given.
    folds_by_slide
        Whether choices are made by inner folds of slides, not of patients, where the test's patients are in
        training too.
    exact_panel
        Whether all the genes that are named must be there: the protocol's figures are those of its panel.
    released_errors
        Whether squared and absolute errors over all test spots pooled are reported too, of values as they
        are and z-scored.
    """

    name: str = "default"
    head: str = "mmap"
    genes: str = DEFAULT_PANEL
    mpps: tuple[float, ...] | None = None
    normalisation: str | None = None
    panel_on_all_slides: bool = False
    test: str | None = None
    folds_by_slide: bool = False
    exact_panel: bool = True
    released_errors: bool = False


DEFAULT = EvaluationProtocol(exact_panel=False)
#: As the released MMAP code evaluates: every test patient is in training too, so that inner folds of slides
#: are what the test is like.
LEGACY_MMAP = EvaluationProtocol(
    "legacy-mmap",
    normalisation=LOG10_PANEL,
    test="slide=A1,B1,C1,D1,E1,F1,G2,H1",
    folds_by_slide=True,
    released_errors=True,
)
#: As the HEST-Benchmark evaluates (github.com/mahmoodlab/HEST, Jaume et al. 2024); its score is
#: ``pcc_pooled``. It has no library size, and its panels were chosen with the test slides.
HEST_BENCH = EvaluationProtocol(
    "hest-bench",
    head="hest-ridge",
    genes="hest:50",
    mpps=(0.5,),
    normalisation=LOG1P_COUNTS,
    panel_on_all_slides=True,
)
#: As TRIPLEX evaluates legacy ST (github.com/NEXGEM/TRIPLEX, Chung et al. 2024); its score is ``pcc_slide``.
#: The measured values of test slides are smoothed too.
TRIPLEX = EvaluationProtocol("triplex", normalisation=LOG10_PANEL_SMOOTHED)
PROTOCOLS = {protocol.name: protocol for protocol in (DEFAULT, LEGACY_MMAP, HEST_BENCH, TRIPLEX)}


def evaluation_protocol(name: str) -> EvaluationProtocol:
    """The protocol of this name.

    Raises
    ------
    RequestError
        If there is none.
    """
    if name not in PROTOCOLS:
        raise RequestError(
            f"There is no protocol {name!r}{did_you_mean(name, PROTOCOLS)}; give one of"
            f" {', '.join(PROTOCOLS)}."
        )
    return PROTOCOLS[name]


@dataclass(frozen=True)
class FitRequest:
    """What to fit, and on what.

    Attributes
    ----------
    encoder
        Name of an encoder in the store.
    method, settings, seed
        The head.
    genes
        Panel, see `mmap_st.data.panel.choose_panel`; None: the protocol's.
    train, validation, test
        WHERE of each role, see `mmap_st.data.splits.resolve_split`.
    mpps
        Magnifications; None: the protocol's, see `magnifications`.
    gene_set
        Genes that a panel is chosen from, see `mmap_st.data.panel.choose_panel`.
    protocol
        How it is evaluated.
    baselines
        Whether the training mean and ridge are fitted and scored too.
    """

    encoder: str
    method: HeadMethod
    settings: Any
    genes: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    mpps: tuple[float, ...] | None = None
    seed: int = 0
    gene_set: str = INTERSECTION
    protocol: EvaluationProtocol = DEFAULT
    baselines: bool = True

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by the head's name: users' code is loaded again in another process."""
        if self.method.local:
            raise HeadError(
                f"the head {self.method.name} is registered in this process only, and fits side by side run"
                " in others: write it to a file and give FILE.py:NAME, or give jobs=1."
            )
        others = {f.name: getattr(self, f.name) for f in fields(self)}
        method, settings = others.pop("method"), others.pop("settings")
        return _rebuilt, (method.reference, method.code, settings_values(settings), others)

    @property
    def panel(self) -> str:
        """The requested panel, or else the protocol's."""
        return self.protocol.genes if self.genes is None else self.genes

    @property
    def magnifications(self) -> tuple[float, ...] | None:
        """The requested ones, or else the protocol's; None: all that are complete on every slide used."""
        return self.protocol.mpps if self.mpps is None else self.mpps


def _rebuilt(head: str, code: str, settings: Mapping[str, Any], others: Mapping[str, Any]) -> FitRequest:
    method = head_method(head)
    if method.code != code:
        raise HeadError(f"the head {method.name} was changed while it was used; give the command again.")
    return FitRequest(method=method, settings=make_settings(method, settings), **others)


def fit_request(
    encoder: str,
    head: str | None = None,
    protocol: str = DEFAULT.name,
    pairs: Sequence[str] = (),
    prototypes: str | None = None,
    **others: Any,
) -> FitRequest:
    """A request from the options of a command.

    Parameters
    ----------
    head, protocol
        By name; without a head, the protocol's.
    pairs
        ``KEY=VALUE`` settings of the head.
    prototypes
        Its setting of that name; None: not given.
    others
        Further attributes of the request.

    Raises
    ------
    RequestError
        If a name or a setting is not known.
    """
    rules = evaluation_protocol(protocol)
    method = head_method(head or rules.head)
    given = [*pairs, *([f"prototypes={prototypes}"] if prototypes is not None else [])]
    return FitRequest(encoder, method, parse_settings(method, given), protocol=rules, **others)
