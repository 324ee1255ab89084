"""Named protocols: published ways to evaluate, beside the default one."""

from __future__ import annotations

from dataclasses import dataclass

from mmap_st.data.normalise import LOG1P_COUNTS, LOG10_PANEL, LOG10_PANEL_SMOOTHED
from mmap_st.data.panel import DEFAULT_PANEL
from mmap_st.errors import RequestError, did_you_mean


@dataclass(frozen=True)
class EvaluationProtocol:
    """What a protocol changes.

    Attributes
    ----------
    name
        What ``--protocol`` calls it.
    head, genes, mpps
        Head, panel and magnifications where none are asked for; no magnifications: all that are complete.
    normalisation
        Of the targets; None: what suits the tables.
    panel_on_all_slides
        Whether the panel is chosen on all slides of the split, not on those of training alone.
    test
        WHERE of the test slides unless ``--test`` is given.
    folds_by_slide
        Whether choices are made by inner folds of slides, not of patients, where the test's patients are in
        training too.
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
    released_errors: bool = False


DEFAULT = EvaluationProtocol()
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
