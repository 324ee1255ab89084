"""The results of cross-validations: what metrics.json, ablations.json and compare.json hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import polars as pl

from mmap_st.errors import counted, printable
from mmap_st.head.runs import predictors_of, shown_with, slide_table, summary_table
from mmap_st.head.scoring import (
    OMITTED,
    PER_SLIDE,
    CorrectedDifference,
    Difference,
    NoiseCeiling,
    PredictionIntervals,
    Scores,
    fields_of,
    read_result,
)

#: Metrics of a row of a comparison.
SCORES = (*PER_SLIDE, "pcc_pooled")
#: Heads that all others of the same encoder and magnifications are compared with, where they are there.
REFERENCES = ("mmap", "ridge")
#: What else rows are compared with: the same head of the first encoder, and at the first magnifications.
FIRST_ENCODER, FIRST_MAGNIFICATIONS = "first encoder", "first magnifications"

#: By metric of `PER_SLIDE`.
Differences = Mapping[str, Difference]


@dataclass(frozen=True)
class CommonProtocol:
    """What all rows of a comparison have in common.

    Attributes
    ----------
    name
        Of the evaluation protocol.
    folds
        How folds were made.
    fold_slides
        Test slides of each fold.
    seeds
        With which each fold was fitted.
    patients
        How many there are; patients who are not known are not counted.
    shared_patients
        Patients who are in both training and test of a fold.
    panel, genes
        How panels were chosen, and their different sizes, smallest first.
    normalisation, smoothed
        Of the targets.
    """

    name: str
    folds: str
    fold_slides: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    patients: int
    shared_patients: tuple[str, ...]
    panel: str
    genes: tuple[int, ...]
    normalisation: str
    smoothed: bool


@dataclass(frozen=True, kw_only=True)
class FoldsProtocol(CommonProtocol):
    """On what the heads of a cross-validation were trained and tested.

    Attributes
    ----------
    validation
        How choices were made within training: all the ways there were.
    spots_without_target, invalid_spots, genes_lacking
        How many there are on each test slide that has any.
    chosen
        What the head of each fold chose within training.
    """

    validation: tuple[str, ...]
    spots_without_target: Mapping[str, int]
    invalid_spots: Mapping[str, int]
    genes_lacking: Mapping[str, int]
    chosen: Mapping[str, Mapping[str, object]]

    def common(self) -> CommonProtocol:
        """What all rows of a comparison have in common."""
        return CommonProtocol(**{f.name: getattr(self, f.name) for f in fields(CommonProtocol)})

    def json_form(self) -> Mapping[str, object]:
        """Fields in the order of the file."""
        return fields_of(self, "name", "folds", "fold_slides", "seeds", "validation") | fields_of(self)


@dataclass(frozen=True, repr=False)
class EvaluationMetrics:
    """Scores of a cross-validation: every slide is tested by heads that did not see it.

    Attributes
    ----------
    protocol
        On what the heads were trained and tested.
    test, baseline_mean, baseline_ridge
        Scores of the head, of the training mean, and of ridge on the same embeddings; None for baselines that
        were not fitted. Slides' scores are means over seeds.
    noise_ceiling
        What a perfect predictor would score; None where targets are not the logarithm of counts of spots.
    prediction_intervals
        How often prediction intervals hold the measured values; None where heads have none.
    gain_over_mean, gain_over_ridge
        How far the head's scores lie above those of each baseline, by metric.
    seconds
        Of each step, all fits together.
    """

    protocol: FoldsProtocol
    test: Scores
    baseline_mean: Scores | None = field(default=None, metadata=OMITTED)
    baseline_ridge: Scores | None = field(default=None, metadata=OMITTED)
    noise_ceiling: NoiseCeiling | None = field(default=None, metadata=OMITTED)
    prediction_intervals: PredictionIntervals | None = None
    gain_over_mean: Differences | None = field(default=None, metadata=OMITTED)
    gain_over_ridge: Differences | None = field(default=None, metadata=OMITTED)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def predictors(self) -> dict[str, Scores]:
        """Scores of those that were scored: ``head``, ``ridge``, ``mean``."""
        return predictors_of(self.test, self.baseline_ridge, self.baseline_mean)

    @property
    def table(self) -> pl.DataFrame:
        """One row per predictor: each metric, with its interval over patients in ``_low`` and ``_high``."""
        return summary_table(self.predictors)

    def to_polars(self) -> pl.DataFrame:
        """One row per predictor and slide.

        Returns
        -------
        Columns ``predictor`` (``head``, ``ridge``, ``mean``), ``slide``, ``fold``, ``n_spots``, ``pcc``,
        ``pcc_hvg50``, ``mse``, ``mae`` and ``undefined_genes``.
        """
        return slide_table(self.predictors)

    def __repr__(self) -> str:
        slides = counted(len(self.test.slides), "slide")
        folds = counted(len(self.protocol.fold_slides), "fold")
        title = f"EvaluationMetrics: {slides} in {folds}, seeds: {len(self.protocol.seeds)}"
        return shown_with(title, self.predictors)


@dataclass(frozen=True)
class AblationRow:
    """Scores of a head with one thing changed.

    Attributes
    ----------
    key, variant
        Its name in commands, and for people; ``whole`` is the head as it is.
    selected
        How many prototypes each spot attends to; None: half of the slide's.
    pcc_slide, pcc_slide_hvg50, mse, mae, pcc_pooled
        See `Scores`.
    difference
        To the head as it is, by metric; None of the head itself.
    """

    key: str
    variant: str
    selected: int | None
    pcc_slide: float
    pcc_slide_hvg50: float
    mse: float
    mae: float
    pcc_pooled: float
    difference: Differences | None

    def value(self, metric: str) -> float:
        """A metric by name, such as ``"pcc_slide"``."""
        found: float = getattr(self, metric)
        return found


@dataclass(frozen=True)
class RowResult:
    """One row of a comparison: a head on an encoder's embeddings at some magnifications.

    Attributes
    ----------
    key
        What it is called, such as ``uni/mmap``.
    encoder, head, magnifications
        Magnifications in micrometres per pixel, finest first.
    reason
        Why it was not evaluated; None where it was. Then the following are None or empty.
    scores
        Its scores on held-out slides, with intervals over patients.
    ari, ari_slides
        Adjusted Rand index of clustered predictions and a pathologist's labels: a mean over labelled slides,
        and of each.
    parameters
        How many numbers its head consists of.
    seconds
        ``fit`` and ``predict``, the mean over its fits.
    differences
        How far it lies above each row that it is compared with, by metric.
    """

    key: str
    encoder: str
    head: str
    magnifications: tuple[float, ...]
    reason: str | None = None
    scores: Scores | None = None
    ari: float | None = None
    ari_slides: Mapping[str, float | None] = field(default_factory=dict)
    parameters: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    differences: Mapping[str, Mapping[str, CorrectedDifference]] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """One of its scores by name, such as ``"pcc_slide"``; None where it was not evaluated."""
        return None if self.scores is None else self.scores.value(metric)

    def difference(self, reference: str, metric: str) -> CorrectedDifference | None:
        """How far it lies above another row; None where it is not compared with it."""
        return self.differences.get(reference, {}).get(metric)

    def json_form(self) -> Mapping[str, object]:
        """One flat object, its scores among the other keys."""
        named = fields_of(self, "key", "encoder", "head", "magnifications", "reason")
        if self.scores is None:
            return {**named, "differences": self.differences}
        return {
            **named,
            **fields_of(self.scores, *SCORES, "intervals", "spread"),
            **fields_of(self, "ari", "ari_slides", "parameters", "seconds"),
            "slides": self.scores.slides,
            "differences": self.differences,
        }

    @staticmethod
    def from_json_form(content: Mapping[str, object]) -> Mapping[str, object]:
        """The fields of the flat object."""
        return content if content.get("reason") else {**content, "scores": content}


@dataclass(frozen=True, repr=False)
class ComparisonResult:
    """Every row of a comparison, on the same folds.

    Attributes
    ----------
    protocol
        What all rows have in common; None where none could be evaluated.
    rows
        In the order of the table.
    """

    protocol: CommonProtocol | None
    rows: tuple[RowResult, ...]

    @property
    def evaluated(self) -> tuple[RowResult, ...]:
        """Rows that have scores."""
        return tuple(row for row in self.rows if row.scores is not None)

    @property
    def table(self) -> pl.DataFrame:
        """The rows of the comparison, as in compare.csv; null where there is no number.

        Returns
        -------
        Columns ``encoder``, ``head`` and ``magnifications``; each metric with its interval in ``_low`` and
        ``_high``; differences in ``METRIC_to_REFERENCE``, with ``_p`` and ``_p_holm``; ``ari``,
        ``parameters``, ``seconds_fit``, ``seconds_predict`` and ``reason``.
        """
        rows = [_cells(row) for row in self.rows]
        text = ("encoder", "head", "magnifications", "reason")
        columns = list(_cells(RowResult("", "", "", ())))
        types = {
            c: pl.String if c in text else pl.Int64 if c == "parameters" else pl.Float64 for c in columns
        }
        return pl.DataFrame(rows, types)

    def to_polars(self) -> pl.DataFrame:
        """One row per row of the comparison and slide.

        Returns
        -------
        Columns ``row``, ``slide``, ``fold``, ``n_spots``, ``pcc``, ``pcc_hvg50``, ``mse``, ``mae`` and
        ``undefined_genes``.
        """
        found = {row.key: row.scores for row in self.rows if row.scores is not None}
        return slide_table(found).rename({"predictor": "row"})

    def __repr__(self) -> str:
        lines = [
            f"  {row.key}: {row.scores!r}" if row.scores else f"  {row.key}: {row.reason}"
            for row in self.rows
        ]
        title = f"ComparisonResult: {len(self.evaluated)} of {counted(len(self.rows), 'row')} evaluated"
        return printable("\n".join([title, *lines]), lines=True)


def read_evaluation(path: Path) -> EvaluationMetrics:
    """Read the metrics.json of an evaluation.

    Raises
    ------
    HeadError
        If it cannot be read.
    """
    return read_result(EvaluationMetrics, path)


def read_comparison(path: Path) -> ComparisonResult:
    """Read a compare.json.

    Raises
    ------
    HeadError
        If it cannot be read.
    """
    return read_result(ComparisonResult, path)


def _cells(row: RowResult) -> dict[str, object]:
    """One number per cell; None where there is none."""
    cells: dict[str, object] = {"encoder": row.encoder, "head": row.head}
    cells["magnifications"] = " ".join(f"{mpp:g}" for mpp in row.magnifications)
    for metric in SCORES:
        cells[metric] = row.value(metric)
        if metric in PER_SLIDE:
            low, high = (row.scores.interval(metric) if row.scores else None) or (None, None)
            cells |= {f"{metric}_low": low, f"{metric}_high": high}
    for reference in (*REFERENCES, FIRST_ENCODER, FIRST_MAGNIFICATIONS):
        for metric in PER_SLIDE:
            found = row.difference(reference, metric)
            low, high = (found.interval if found else None) or (None, None)
            name = f"{metric}_to_{reference.replace(' ', '_')}"
            cells |= {name: found.mean if found else None, f"{name}_low": low, f"{name}_high": high}
            if reference in REFERENCES:
                cells |= {f"{name}_p": found.p_value if found else None}
                cells |= {f"{name}_p_holm": found.p_holm if found else None}
    cells |= {"ari": row.ari, "parameters": row.parameters}
    cells |= {f"seconds_{key}": row.seconds.get(key) for key in ("fit", "predict")}
    cells["reason"] = row.reason
    return cells
