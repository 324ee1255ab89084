"""The results of one fitted head: what metrics.json and genes.csv hold, and how a fit comes to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

import mmap_st
from mmap_st.data import NORMALISATIONS, Panel, Split, Targets, noise_ceiling
from mmap_st.errors import HeadError, agreeing, counted, printable
from mmap_st.extract.store import Recipe
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import FittedHead, Validation, settings_values
from mmap_st.head.runs.head_card import HeadCard, NormalisationCard, PanelCard, SplitCard, join_cards
from mmap_st.head.runs.request import FitRequest
from mmap_st.head.runs.suitability import TrainingSlides
from mmap_st.head.scoring import (
    LEVEL,
    OMITTED,
    PER_SLIDE,
    Calibration,
    GeneTrust,
    NoiseCeiling,
    PredictionIntervals,
    Scores,
    Spread,
    calibration_of,
    coverage,
    fields_of,
    gene_table,
    most_variable,
    pooled_errors,
    read_result,
    score_slides,
    slide_ceilings,
)


@dataclass(frozen=True)
class RunProtocol:
    """On what a head was trained and tested.

    Attributes
    ----------
    name
        Of the evaluation protocol.
    validation
        How choices were made within training.
    train, val, test
        Names of slides.
    shared_patients
        Patients who are in both training (or validation) and test.
    panel, genes
        How the panel was chosen, and its number of genes.
    normalisation, smoothed
        Of the targets.
    chosen
        What the head chose within training, such as its strength.
    spots_without_target, invalid_spots, genes_lacking
        How many there are on each slide that has any.
    shared_patients_validation
        Patients who are in both training and validation.
    """

    name: str
    validation: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    shared_patients: tuple[str, ...]
    panel: str
    genes: int
    normalisation: str
    smoothed: bool
    chosen: Mapping[str, object]
    spots_without_target: Mapping[str, int]
    invalid_spots: Mapping[str, int]
    genes_lacking: Mapping[str, int]
    shared_patients_validation: tuple[str, ...] = field(default=(), metadata=OMITTED)


@dataclass(frozen=True)
class TrustedGenes:
    """How many genes a head predicts better than by chance on spots that fits did not see, see `GeneTrust`.

    Attributes
    ----------
    trusted
        Those that are to be trusted on new patients.
    above_chance
        Those that are better than chance, on whatever was held out.
    judged_on, patients
        How spots were held out, and how many patients fits had not seen.
    of_patients
        Whether these are enough for any gene to be trusted.
    """

    trusted: int
    above_chance: int
    judged_on: str
    patients: int
    of_patients: bool

    def sentence(self, genes: int) -> str:
        """How many of the `genes` of a panel are to be trusted, without a full stop."""
        of = f"of {counted(genes, 'gene')}"
        if self.of_patients:
            on = counted(self.patients, "patient")
            return f"{self.trusted} {of} can be trusted: better than chance on {on} that no fit saw"
        return (
            f"{self.above_chance} {of} {agreeing(self.above_chance, 'is', 'are')} predicted better than by"
            f" chance on spots that no fit saw ({self.judged_on}); too few patients to tell which to trust on"
            " new ones"
        )


@dataclass(frozen=True, repr=False)
class RunMetrics:
    """Scores of a trained head on its test slides, next to those of two baselines.

    Attributes
    ----------
    protocol
        On what it was trained and tested.
    test
        Scores of the head; None where no slide is for testing.
    noise_ceiling
        What a perfect predictor would score; None where targets are not the logarithm of counts of spots.
    prediction_intervals
        How often its prediction intervals hold the measured values; None where it has none.
    gene_trust
        How many genes of the panel are to be trusted; None where that was not judged.
    baseline_mean, baseline_ridge
        Scores of the training mean, and of ridge on the same embeddings; None where they were not fitted.
    seconds
        Of each step.
    """

    protocol: RunProtocol
    test: Scores | None
    noise_ceiling: NoiseCeiling | None = field(default=None, metadata=OMITTED)
    prediction_intervals: PredictionIntervals | None = None
    gene_trust: TrustedGenes | None = field(default=None, metadata=OMITTED)
    baseline_mean: Scores | None = field(default=None, metadata=OMITTED)
    baseline_ridge: Scores | None = field(default=None, metadata=OMITTED)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def predictors(self) -> dict[str, Scores]:
        """Scores of those that were scored: ``head``, ``ridge``, ``mean``."""
        return predictors_of(self.test, self.baseline_ridge, self.baseline_mean)

    @property
    def table(self) -> pl.DataFrame:
        """One row per predictor, with its scores."""
        return summary_table(self.predictors)

    def to_polars(self) -> pl.DataFrame:
        """One row per predictor and test slide.

        Returns
        -------
        Columns ``predictor`` (``head``, ``ridge``, ``mean``), ``slide``, ``n_spots``, ``pcc``, ``pcc_hvg50``,
        ``mse``, ``mae`` and ``undefined_genes``.
        """
        return slide_table(self.predictors)

    def __repr__(self) -> str:
        numbers = [len(names) for names in (self.protocol.train, self.protocol.val, self.protocol.test)]
        slides = "{} train, {} validate, {} test".format(counted(numbers[0], "slide"), *numbers[1:])
        return shown_with(f"RunMetrics: {slides}; {counted(self.protocol.genes, 'gene')}", self.predictors)

    def json_form(self) -> Mapping[str, object]:
        """Fields as they are; without test slides, baselines are there and null."""
        if self.test is not None:
            return fields_of(self)
        baselines = {"baseline_mean": None, "baseline_ridge": None}
        return {key: value for key, value in vars(self).items() if key in fields_of(self) or key in baselines}


def read_metrics(path: Path) -> RunMetrics:
    """Read the metrics.json of a run of `mmap fit-head`.

    Raises
    ------
    HeadError
        If it cannot be read.
    """
    return read_result(RunMetrics, path)


def predictors_of(head: Scores | None, ridge: Scores | None, mean: Scores | None) -> dict[str, Scores]:
    """Scores by predictor, of those that were scored."""
    found = {"head": head, "ridge": ridge, "mean": mean}
    return {name: scores for name, scores in found.items() if scores is not None}


def summary_table(predictors: Mapping[str, Scores]) -> pl.DataFrame:
    """One row per predictor: each metric, and its interval over patients where there is one."""
    rows: list[dict[str, object]] = []
    for name, scores in predictors.items():
        row: dict[str, object] = {"predictor": name}
        for metric in (*PER_SLIDE, "pcc_pooled"):
            row[metric] = scores.value(metric)
            if scores.intervals is not None and metric in PER_SLIDE:
                row[f"{metric}_low"], row[f"{metric}_high"] = scores.interval(metric) or (None, None)
        rows.append(row)
    columns = list(rows[0]) if rows else ["predictor", *PER_SLIDE, "pcc_pooled"]
    return pl.DataFrame(rows, {c: pl.String if c == "predictor" else pl.Float64 for c in columns})


def slide_table(predictors: Mapping[str, Scores]) -> pl.DataFrame:
    """One row per predictor and slide; with the slide's ``fold`` where there are folds."""
    rows = [
        {
            "predictor": name,
            "slide": slide,
            "fold": scores.fold,
            "n_spots": scores.n_spots,
            "pcc": scores.pcc,
            "pcc_hvg50": scores.pcc_hvg50,
            "mse": scores.mse,
            "mae": scores.mae,
            "undefined_genes": float(scores.undefined_genes),
        }
        for name, of_slides in predictors.items()
        for slide, scores in of_slides.slides.items()
    ]
    text, number = (
        dict.fromkeys(("predictor", "slide", "fold"), pl.String),
        dict.fromkeys(("pcc", "pcc_hvg50", "mse", "mae", "undefined_genes"), pl.Float64),
    )
    table = pl.DataFrame(rows, {**text, "n_spots": pl.Int64, **number})
    return table if table["fold"].is_not_null().any() else table.drop("fold")


def shown_with(title: str, predictors: Mapping[str, Scores]) -> str:
    """A title, and a line for each predictor."""
    return "\n".join([title, *(f"  {printable(name)}: {scores!r}" for name, scores in predictors.items())])


Predictions = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class FittedRun:
    """A trained head, and all that it was trained on and is to be scored on.

    Attributes
    ----------
    request, split, panel, normalisation, recipes, mpps
        The request, and what was made of it; recipes by encoder.
    train, held_back, test
        The slides, with targets.
    validation
        How choices were made.
    head
        The head.
    signal
        (G,) share of the variance of targets that is not noise, of those slides where it is known.
    """

    request: FitRequest
    split: Split
    panel: Panel
    normalisation: str
    recipes: Mapping[str, Recipe]
    mpps: tuple[float, ...]
    train: Sequence[HeadSlide]
    held_back: Sequence[HeadSlide]
    test: Sequence[HeadSlide]
    validation: Validation
    head: FittedHead
    signal: Mapping[str, NDArray[np.float64]]

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
        scored = {name: predicted[name] for name in measured}
        scores = score_slides(scored, measured, self._hvg50).below(self.ceiling)
        whose = {slide.name: slide.patient for slide in self.test}
        of_patients = {name: replace(of, patient=whose[name]) for name, of in scores.slides.items()}
        scores = replace(scores, slides=of_patients)
        if self.request.protocol.released_errors:
            scores = scores.with_pooled(pooled_errors(scored, measured))
        return scores

    @cached_property
    def ceiling(self) -> NoiseCeiling | None:
        """What a perfect predictor would score on the test slides."""
        tested = {s.name: self.signal[s.name] for s in self.test if s.usable.any() and s.name in self.signal}
        return slide_ceilings(tested, self._hvg50)

    @cached_property
    def _hvg50(self) -> list[int]:
        return most_variable([s.target.rows(s.usable) for s in self.train if s.target is not None])

    def gene_trust(self, trust: GeneTrust) -> TrustedGenes:
        """How many genes are to be trusted."""
        return TrustedGenes(
            trusted=int(trust.trusted.sum()),
            above_chance=int(trust.above_chance.sum()),
            judged_on=self.validation.rule,
            patients=self.calibration.patients,
            of_patients=self.calibration.of_patients,
        )

    @property
    def calibration(self) -> Calibration:
        """What intervals and the judgement of genes rest on."""
        return calibration_of(self.validation.rule, self.validation.unseen_patients)

    def intervals(
        self, spread: Spread, predicted: Predictions, distances: Mapping[str, NDArray[np.float32]]
    ) -> PredictionIntervals:
        """How often prediction intervals hold the measured values on the test slides."""
        calibrated = self.held_back or self.train
        found = coverage(spread, predicted, self._measured(predicted), distances)
        return PredictionIntervals(
            level=LEVEL,
            calibrated_on=self.validation.rule,
            patients=len({slide.patient or slide.name for slide in calibrated}),
            widened=self.calibration.widened,
            condition=self.calibration.condition,
            **asdict(found),
        )

    def genes(
        self, predicted: Predictions, ridge: Predictions | None, trust: GeneTrust | None
    ) -> list[dict[str, object]]:
        """Rows of genes.csv: each gene of the panel, its scores on the test slides, ridge's, its trust."""
        measured = self._measured(predicted)
        ids = self.panel.gene_ids or ("",) * len(self.panel.genes)
        columns = gene_table(predicted, measured)
        tested = [self.signal[name] for name in measured if name in self.signal]
        if tested:
            columns["ceiling"] = noise_ceiling(tested).tolist()
        if ridge is not None:
            columns |= {f"ridge_{k}": v for k, v in gene_table(ridge, measured).items() if k != "slides"}
        if trust is not None:
            # Numbers, so that folds have a mean. The ceiling is that of the test slides.
            columns |= {k: v.astype(float).tolist() for k, v in trust.columns().items() if k != "ceiling"}
        rows = zip(*columns.values(), strict=True)
        return [
            {"gene": gene, "gene_id": gene_id, **dict(zip(columns, row, strict=True))}
            for gene, gene_id, row in zip(self.panel.genes, ids, rows, strict=True)
        ]

    def card(self, trained: Mapping[str, TrainingSlides]) -> HeadCard:
        """What the head is and was trained on; `trained` is the scale of these slides by encoder."""
        seen = zip(self.recipes.items(), self.train[0].by_encoder, strict=True)
        cards = [self._card(slide, recipe, trained[name]) for (name, recipe), slide in seen]
        return join_cards(cards, self.head.chosen)

    def _card(self, slide: HeadSlide, recipe: Recipe, trained: TrainingSlides) -> HeadCard:
        tokens, width = slide.tokens, slide.embedding.shape[2]
        shape = {"magnifications": len(self.mpps), "width": width, "genes": len(self.panel.genes)}
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
            encoder=recipe,
            magnifications=self.mpps,
            slides=SplitCard(self.split.train, self.split.validation, self.split.test),
            calibration=self.calibration,
            training_slides=trained,
        )

    def _measured(self, predicted: Predictions) -> dict[str, Targets]:
        found = {s.name: s.target for s in self.test if s.target is not None and s.usable.any()}
        if not found:
            raise HeadError("no test spot has both a valid embedding and a target; check the counts.")
        return {name: target for name, target in found.items() if name in predicted}
