"""What a fitted head's run says of itself: metrics.json, genes.csv and head.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import NORMALISATIONS, Panel, Split, Targets
from mmap_st.errors import HeadError
from mmap_st.extract.store import Recipe
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import FittedHead, Validation, settings_values
from mmap_st.head.runs.request import FitRequest
from mmap_st.head.scoring import LEVEL, Spread, coverage, gene_table, most_variable, pooled_errors, summarise

Predictions = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Fitted:
    """A trained head, and all that it was trained on and is to be scored on.

    Attributes
    ----------
    request, split, panel, normalisation, recipe, mpps
        What was asked, and what it came to.
    train, held_back, test
        The slides, with targets.
    validation
        How choices were made.
    head
        The head.
    """

    request: FitRequest
    split: Split
    panel: Panel
    normalisation: str
    recipe: Recipe
    mpps: tuple[float, ...]
    train: Sequence[HeadSlide]
    held_back: Sequence[HeadSlide]
    test: Sequence[HeadSlide]
    validation: Validation
    head: FittedHead

    def protocol(self) -> dict[str, Any]:
        """``protocol`` of metrics.json."""
        used = (*self.train, *self.held_back, *self.test)
        undefined = {s.name: int((s.valid & ~s.usable).sum()) for s in used}
        invalid = {s.name: int((~s.valid).sum()) for s in used}
        lacking = {s.name: s.missing_genes for s in used}
        return {
            "name": self.request.protocol.name,
            "validation": self.validation.rule,
            "train": list(self.split.train),
            "val": list(self.split.validation),
            "test": list(self.split.test),
            "shared_patients": list(self.split.shared_patients),
            "panel": self.panel.how,
            "genes": len(self.panel.genes),
            "normalisation": self.normalisation,
            "smoothed": NORMALISATIONS[self.normalisation].smoothed,
            "chosen": self.head.chosen,
            "spots_without_target": {name: n for name, n in undefined.items() if n},
            "invalid_spots": {name: n for name, n in invalid.items() if n},
            "genes_lacking": {name: n for name, n in lacking.items() if n},
        }

    def scores(self, predicted: Predictions) -> dict[str, Any]:
        """Metrics of predictions of the test slides, as ``test`` of metrics.json.

        Raises
        ------
        HeadError
            If no test spot can be scored.
        """
        measured = self._measured(predicted)
        hvg = most_variable([s.target.rows(s.usable) for s in self.train if s.target is not None])
        scored = {name: predicted[name] for name in measured}
        summary = summarise(scored, measured, hvg)
        if self.request.protocol.released_errors:
            summary |= pooled_errors(scored, measured)
        return summary

    def intervals(self, spread: Spread, predicted: Predictions) -> dict[str, Any]:
        """``prediction_intervals`` of metrics.json: how often they hold the truth on the test slides."""
        calibrated = self.held_back or self.train
        return {
            "level": LEVEL,
            "calibrated_on": self.validation.rule,
            "patients": len({slide.patient or slide.name for slide in calibrated}),
            **coverage(spread, predicted, self._measured(predicted)),
        }

    def genes(self, predicted: Predictions, ridge: Predictions | None) -> list[dict[str, Any]]:
        """Rows of genes.csv: each gene of the panel, its scores on the test slides, and ridge's."""
        measured = self._measured(predicted)
        ids = self.panel.gene_ids or ("",) * len(self.panel.genes)
        columns = gene_table(predicted, measured)
        if ridge is not None:
            columns |= {f"ridge_{k}": v for k, v in gene_table(ridge, measured).items() if k != "slides"}
        rows = zip(*columns.values(), strict=True)
        return [
            {"gene": gene, "gene_id": gene_id, **dict(zip(columns, row, strict=True))}
            for gene, gene_id, row in zip(self.panel.genes, ids, rows, strict=True)
        ]

    def card(self) -> dict[str, Any]:
        """Contents of head.json."""
        tokens = self.train[0].tokens
        return {
            "head": self.request.method.reference,
            **({"head_code_sha256": self.request.method.code} if self.request.method.code else {}),
            "settings": settings_values(self.request.settings),
            "chosen": self.head.chosen,
            "seed": self.request.seed,
            "shape": {
                "magnifications": len(self.mpps),
                "width": self.train[0].embedding.shape[2],
                "genes": len(self.panel.genes),
                **({} if tokens is None else {"token_width": tokens.shape[3]}),
            },
            **({} if tokens is None else {"tokens": math.isqrt(tokens.shape[2])}),
            "panel": {
                "genes": list(self.panel.genes),
                "gene_ids": None if self.panel.gene_ids is None else list(self.panel.gene_ids),
                "how": self.panel.how,
                "slides": list(self.panel.slides),
            },
            "normalisation": {"targets": self.normalisation, "embeddings": self.request.method.embeddings},
            "encoder": self.recipe,
            "magnifications": list(self.mpps),
            "slides": {
                "train": list(self.split.train),
                "val": list(self.split.validation),
                "test": list(self.split.test),
            },
        }

    def _measured(self, predicted: Predictions) -> dict[str, Targets]:
        found = {s.name: s.target for s in self.test if s.target is not None and s.usable.any()}
        if not found:
            raise HeadError("no test spot has both a valid embedding and a target; check the counts.")
        return {name: target for name, target in found.items() if name in predicted}
