"""Named protocols: published ways to evaluate, beside the default one."""

from __future__ import annotations

from dataclasses import dataclass

from mmap_st.data.normalise import LOG10_PANEL
from mmap_st.errors import RequestError, did_you_mean


@dataclass(frozen=True)
class EvaluationProtocol:
    """What a protocol changes.

    Attributes
    ----------
    name
        What ``--protocol`` calls it.
    normalisation
        Of the targets; None: what suits the tables.
    test
        WHERE of the test slides unless ``--test`` is given.
    folds_by_slide
        Whether choices are made by inner folds of slides, not of patients.
    released_errors
        Whether squared and absolute errors over all test spots pooled are reported too, of values as they
        are and z-scored.
    """

    name: str = "default"
    normalisation: str | None = None
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
PROTOCOLS = {protocol.name: protocol for protocol in (DEFAULT, LEGACY_MMAP)}


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
