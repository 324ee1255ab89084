"""The results of one fitted head: what metrics.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from mmap_st.head.scoring import (
    OMITTED,
    PER_SLIDE,
    PredictionIntervals,
    Scores,
    fields_of,
    read_result,
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


@dataclass(frozen=True, repr=False)
class RunMetrics:
    """Scores of a trained head on its test slides, next to those of two baselines.

    Attributes
    ----------
    protocol
        On what it was trained and tested.
    test
        Scores of the head; None where no slide is for testing.
    prediction_intervals
        How often its prediction intervals hold the measured values; None where it has none.
    baseline_mean, baseline_ridge
        Scores of the training mean, and of ridge on the same embeddings; None where they were not fitted.
    seconds
        Of each step.
    """

    protocol: RunProtocol
    test: Scores | None
    prediction_intervals: PredictionIntervals | None = None
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
        slides = "{} slides train, {} validate, {} test".format(*numbers)
        return shown_with(f"RunMetrics: {slides}; {self.protocol.genes} genes", self.predictors)

    def json_form(self) -> Mapping[str, object]:
        """Fields as they are; without test slides, baselines are there and null."""
        if self.test is not None:
            return fields_of(self)
        return vars(self)


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
    return "\n".join([title, *(f"  {name}: {scores!r}" for name, scores in predictors.items())])
