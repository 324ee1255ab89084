"""What a fit comes to: contents of metrics.json, genes.csv and head.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

import mmap_st
from mmap_st.data import NORMALISATIONS, Panel, Split, Targets
from mmap_st.errors import HeadError
from mmap_st.extract.store import Recipe
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import FittedHead, Validation, settings_values
from mmap_st.head.runs.head_card import HeadCard, NormalisationCard, PanelCard, SplitCard
from mmap_st.head.runs.request import FitRequest
from mmap_st.head.runs.run_metrics import RunProtocol
from mmap_st.head.scoring import (
    LEVEL,
    PredictionIntervals,
    Scores,
    Spread,
    coverage,
    gene_table,
    most_variable,
    pooled_errors,
    score_slides,
)

Predictions = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class FittedRun:
    """A trained head, and all that it was trained on and is to be scored on.

    Attributes
    ----------
    request, split, panel, normalisation, recipe, mpps
        The request, and what was made of it.
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

    def protocol(self) -> RunProtocol:
        """On what the head was trained and is tested."""
        used = (*self.train, *self.held_back, *self.test)
        undefined = {s.name: int((s.valid & ~s.usable).sum()) for s in used}
        invalid = {s.name: int((~s.valid).sum()) for s in used}
        missing = {s.name: s.missing_genes for s in used}
        return RunProtocol(
            name=self.request.protocol.name,
            validation=self.validation.rule,
            train=self.split.train,
            val=self.split.validation,
            test=self.split.test,
            shared_patients=self.split.shared_patients,
            panel=self.panel.how,
            genes=len(self.panel.genes),
            normalisation=self.normalisation,
            smoothed=NORMALISATIONS[self.normalisation].smoothed,
            chosen=self.head.chosen,
            spots_without_target={name: n for name, n in undefined.items() if n},
            invalid_spots={name: n for name, n in invalid.items() if n},
            genes_lacking={name: n for name, n in missing.items() if n},
            shared_patients_validation=self.split.shared_patients_validation,
        )

    def scores(self, predicted: Predictions) -> Scores:
        """Scores of predictions of the test slides.

        Raises
        ------
        HeadError
            If no test spot can be scored.
        """
        measured = self._measured(predicted)
        hvg = most_variable([s.target.rows(s.usable) for s in self.train if s.target is not None])
        scored = {name: predicted[name] for name in measured}
        scores = score_slides(scored, measured, hvg)
        if self.request.protocol.released_errors:
            scores = scores.with_pooled(pooled_errors(scored, measured))
        return scores

    def intervals(self, spread: Spread, predicted: Predictions) -> PredictionIntervals:
        """How often prediction intervals hold the measured values on the test slides."""
        calibrated = self.held_back or self.train
        found = coverage(spread, predicted, self._measured(predicted))
        return PredictionIntervals(
            level=LEVEL,
            calibrated_on=self.validation.rule,
            patients=len({slide.patient or slide.name for slide in calibrated}),
            **asdict(found),
        )

    def genes(self, predicted: Predictions, ridge: Predictions | None) -> list[dict[str, object]]:
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

    def card(self) -> HeadCard:
        """What the head is and was trained on."""
        tokens = self.train[0].tokens
        shape = {
            "magnifications": len(self.mpps),
            "width": self.train[0].embedding.shape[2],
            "genes": len(self.panel.genes),
        }
        return HeadCard(
            package_version=mmap_st.__version__,
            head=self.request.method.reference,
            head_code_sha256=self.request.method.code,
            settings=settings_values(self.request.settings),
            chosen=self.head.chosen,
            seed=self.request.seed,
            shape=shape if tokens is None else {**shape, "token_width": tokens.shape[3]},
            tokens=0 if tokens is None else math.isqrt(tokens.shape[2]),
            panel=PanelCard(self.panel.genes, self.panel.gene_ids, self.panel.how, self.panel.slides),
            normalisation=NormalisationCard(self.normalisation, self.request.method.embeddings),
            encoder=self.recipe,
            magnifications=self.mpps,
            slides=SplitCard(self.split.train, self.split.validation, self.split.test),
        )

    def _measured(self, predicted: Predictions) -> dict[str, Targets]:
        found = {s.name: s.target for s in self.test if s.target is not None and s.usable.any()}
        if not found:
            raise HeadError("no test spot has both a valid embedding and a target; check the counts.")
        return {name: target for name, target in found.items() if name in predicted}
