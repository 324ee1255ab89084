"""What to fit, as the commands ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmap_st.data.panel import INTERSECTION
from mmap_st.head.base import HeadMethod
from mmap_st.head.protocols import DEFAULT, EvaluationProtocol


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

    @property
    def panel(self) -> str:
        """The panel: what was asked for, else the protocol's."""
        return self.protocol.genes if self.genes is None else self.genes

    @property
    def magnifications(self) -> tuple[float, ...] | None:
        """What was asked for, else the protocol's; None: all that are complete on every slide used."""
        return self.protocol.mpps if self.mpps is None else self.mpps
