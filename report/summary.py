"""Results in words and as a table, for terminals and pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from math import nan
from statistics import fmean

from mmap_st.errors import counted
from mmap_st.head.evaluation import ComparisonResult, EvaluationMetrics
from mmap_st.head.runs import RunMetrics
from mmap_st.head.scoring import Interval, NoiseCeiling, PredictionIntervals, Scores

#: What tables call the predictors of results.
_PREDICTORS = {"ridge": "ridge (own strength)", "mean": "training mean"}
#: Metrics that each slide has.
PER_SLIDE = ("pcc_slide", "pcc_slide_hvg50", "mse", "mae")


@dataclass(frozen=True)
class Summary:
    """Results to be shown.

    Attributes
    ----------
    about
        On what they are, in a sentence.
    title, columns, rows
        Of the table of scores; no rows where nothing was scored.
    notes
        What a reader of the table must know, a sentence each.
    """

    about: str
    title: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()


def summary_of_run(metrics: RunMetrics, head: str) -> Summary:
    """A head's scores, next to those of the baselines."""
    protocol = metrics.protocol
    about = (
        f"{counted(len(protocol.train), 'slide')} train, {len(protocol.val)} validate, {len(protocol.test)}"
        f" test; {counted(protocol.genes, 'gene')} ({protocol.panel}); {protocol.validation}"
    )
    if metrics.test is None:
        untested = "no slide was held out (--test): nothing was scored, and how good the head is is not known"
        return Summary(about, notes=(untested,))
    keys = ("pcc_slide", "pcc_slide_hvg50", "pcc_pooled", "mse", "mae")
    shown = {
        name: scores
        for name, scores in metrics.predictors.items()
        if name != "ridge" or scores != metrics.test
    }
    rows = [
        [_PREDICTORS.get(name, head), *(number(scores.value(key)) for key in keys)]
        for name, scores in shown.items()
    ]
    columns = ["head", "PCC (per slide)", "PCC (hvg50)", "PCC (pooled)", "MSE", "MAE"]
    _add_ceiling(columns, rows, shown.values(), metrics.noise_ceiling)
    found = [
        *_coverage(metrics.prediction_intervals),
        *([] if metrics.gene_trust is None else [metrics.gene_trust.sentence(protocol.genes)]),
    ]
    return Summary(about, "test slides", tuple(columns), tuple(map(tuple, rows)), tuple(found))


def summary_of_evaluation(metrics: EvaluationMetrics, head: str) -> Summary:
    """Scores of a cross-validation, with intervals over patients."""
    protocol = metrics.protocol
    least, most = sorted((protocol.genes[0], protocol.genes[-1]))
    genes = counted(most, "gene") if least == most else f"{least} to {most} genes"
    about = (
        f"{counted(len(metrics.test.slides), 'slide')} of {counted(protocol.patients, 'patient')} in"
        f" {counted(len(protocol.fold_slides), 'fold')} ({protocol.folds}),"
        f" {counted(len(protocol.seeds), 'seed')}; {genes} ({protocol.panel});"
        f" {', '.join(protocol.validation)}"
    )
    rows = [
        [_PREDICTORS.get(name, head), *(with_interval(of.value(k), of.interval(k)) for k in PER_SLIDE)]
        for name, of in metrics.predictors.items()
    ]
    for name, gain in (("over ridge", metrics.gain_over_ridge), ("over the mean", metrics.gain_over_mean)):
        if gain is not None:
            rows.append([name, *(with_interval(gain[k].mean, gain[k].interval, "+") for k in PER_SLIDE)])
    columns = ["head", "PCC (per slide)", "PCC (hvg50)", "MSE", "MAE"]
    _add_ceiling(columns, rows, metrics.predictors.values(), metrics.noise_ceiling)
    enough = metrics.test.interval("pcc_slide") is not None
    what = "with 95% intervals over patients" if enough else "too few patients for intervals"
    found = _coverage(metrics.prediction_intervals)
    return Summary(about, f"held-out slides, {what}", tuple(columns), tuple(map(tuple, rows)), tuple(found))


def summary_of_folds(metrics: EvaluationMetrics) -> Summary:
    """What each fold of a cross-validation tested, and how well the head did there."""
    rows = []
    for name, slides in metrics.protocol.fold_slides.items():
        scored = [slide for slide in slides if slide in metrics.test.slides]
        means = (
            fmean(metrics.test.of_slide(slide, key) for slide in scored) if scored else nan
            for key in PER_SLIDE
        )
        rows.append((name, ", ".join(slides), *map(number, means)))
    columns = ("fold", "test slides", "PCC (per slide)", "PCC (hvg50)", "MSE", "MAE")
    return Summary("", "folds", columns, tuple(rows))


def named_predictors(predictors: Mapping[str, Scores], head: str) -> dict[str, Scores]:
    """Scores by what tables call the predictors."""
    return {_PREDICTORS.get(name, head): scores for name, scores in predictors.items()}


def summary_of_comparison(result: ComparisonResult) -> Summary:
    """Every row of a comparison."""
    from mmap_st.report.comparison import about, notes, table_of  # matplotlib, which others need not wait for

    columns, rows = table_of(result.rows)
    lines = tuple(map(tuple, rows))
    return Summary(about(result), "held-out slides", tuple(columns), lines, tuple(notes(result)))


def _add_ceiling(
    columns: list[str], rows: list[list[str]], shown: Iterable[Scores], ceiling: NoiseCeiling | None
) -> None:
    """Add beside the PCC its share of the noise ceiling, and the ceiling as the last row."""
    if ceiling is None:
        return
    columns.insert(2, "of ceiling")
    shares = (None if scores.pcc_of_ceiling is None else f"{scores.pcc_of_ceiling:.0%}" for scores in shown)
    for row, share in zip_longest(rows, shares):
        row.insert(2, share or "")
    known = ["noise ceiling", number(ceiling.pcc_slide), "", number(ceiling.pcc_slide_hvg50)]
    rows.append(known + [""] * (len(columns) - len(known)))


def _coverage(found: PredictionIntervals | None) -> list[str]:
    """How often prediction intervals held the truth."""
    if found is None:
        return []
    worst = found.worst_slide if len(found.slides) > 1 else None
    least = "" if worst is None else f", and {found.slides[worst]:.1%} on the slide {worst}, the least"
    return [
        f"{found.level:.0%} prediction intervals contain {found.coverage:.1%} of the test targets{least}"
        f" ({found.condition or found.calibrated_on})"
    ]


def with_interval(value: float, interval: Interval | None, sign: str = "") -> str:
    """A number, and its interval where there is one."""
    if value != value:
        return "undefined"
    shown = f"{value:{sign}.4f}"
    return shown if interval is None else f"{shown} ({interval[0]:{sign}.4f} to {interval[1]:{sign}.4f})"


def number(value: float) -> str:
    """A score, of four digits."""
    return "undefined" if value != value else f"{value:.4f}"
