"""What to fit, as the commands ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mmap_st.data.panel import INTERSECTION
from mmap_st.errors import HeadError
from mmap_st.head.base import HeadMethod, make_settings, parse_settings, settings_values
from mmap_st.head.protocols import DEFAULT, EvaluationProtocol, evaluation_protocol
from mmap_st.head.registry import head_method


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
        Whether the training mean and ridge are fitted and scored beside it.
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
        """Pickled by the head's name: code that users bring is loaded anew in another process."""
        others = {f.name: getattr(self, f.name) for f in fields(self)}
        method, settings = others.pop("method"), others.pop("settings")
        return _rebuilt, (method.reference, method.code, settings_values(settings), others)

    @property
    def panel(self) -> str:
        """The panel: what was asked for, else the protocol's."""
        return self.protocol.genes if self.genes is None else self.genes

    @property
    def magnifications(self) -> tuple[float, ...] | None:
        """What was asked for, else the protocol's; None: all that are complete on every slide used."""
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
    """A request from the words of a command line.

    Parameters
    ----------
    head, protocol
        By name; no head: the protocol's own.
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
