"""What heads are trained on and predict from: one slide's embeddings, targets and prototypes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class HeadSlide:
    """One slide as a head sees it.

    Attributes
    ----------
    name, patient
        Of the slide.
    ids
        (n,) spot ids.
    xy
        (n, 2) float64, centres in level-0 pixels.
    embedding
        (n, M, d) float32, finest magnification first; rows that are not valid are NaN.
    valid
        (n,) whether every magnification of the spot could be read.
    target
        (n, G) float32 on the panel, NaN where undefined; None for a slide that was never sequenced.
    centre
        (K, M, d) float32, prototype candidates; None where prototypes are not used.
    selected
        (n, K) bool, the candidates selected for each spot.
    """

    name: str
    patient: str | None
    ids: tuple[str, ...]
    xy: NDArray[np.float64]
    embedding: NDArray[np.float32]
    valid: NDArray[np.bool_]
    target: NDArray[np.float32] | None = None
    centre: NDArray[np.float32] | None = None
    selected: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(n,) spots to learn from and to score: a valid embedding and at least one defined target."""
        if self.target is None:
            return np.zeros(len(self), np.bool_)
        return self.valid & np.isfinite(self.target).any(axis=1)

    @property
    def genes_lacking(self) -> int:
        """How many genes of the panel the slide does not have."""
        if self.target is None or not self.usable.any():
            return 0
        return int((~np.isfinite(self.target[self.usable]).any(axis=0)).sum())

    def rows(self, keep: NDArray[np.bool_]) -> HeadSlide:
        """The same slide with these spots only; its candidates stay."""
        return replace(
            self,
            ids=tuple(name for name, kept in zip(self.ids, keep, strict=True) if kept),
            xy=self.xy[keep],
            embedding=self.embedding[keep],
            valid=self.valid[keep],
            target=None if self.target is None else self.target[keep],
            selected=None if self.selected is None else self.selected[keep],
        )
