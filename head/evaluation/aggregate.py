"""What the runs of all folds and seeds add up to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from mmap_st.errors import HeadError
from mmap_st.head.evaluation.results import EvaluationMetrics, FoldsProtocol
from mmap_st.head.runs import RunMetrics, RunProtocol
from mmap_st.head.scoring import (
    PER_SLIDE,
    Difference,
    NoiseCeiling,
    PooledErrors,
    PredictionIntervals,
    Scores,
    SlideScores,
    ceiling_of,
    interval_over_patients,
    paired_difference,
)

#: Of each slide; None: not known.
Patients = Mapping[str, str | None]
#: By fold and seed.
Runs = Mapping[tuple[str, int], RunMetrics]


def evaluation_metrics(runs: Runs, patients: Patients, rule: str, protocol: str) -> EvaluationMetrics:
    """Scores of a cross-validation.

    A slide's scores are means over seeds; ``pcc_pooled`` is a mean over folds.

    Parameters
    ----------
    runs
        Metrics of each fold and seed.
    patients
        Of each slide; None: not known.
    rule
        How folds were made.
    protocol
        Name of the evaluation protocol.

    Raises
    ------
    HeadError
        If a run has no test slides.
    """
    ceiling = _ceiling(runs)
    test = _scores({key: run.test for key, run in runs.items()}, patients, ceiling)
    if test is None:
        raise HeadError("a fold's metrics.json has no scores; remove the fold's folder and run again.")
    mean = _scores({key: run.baseline_mean for key, run in runs.items()}, patients, ceiling)
    ridge = _scores({key: run.baseline_ridge for key, run in runs.items()}, patients, ceiling)
    seconds = [run.seconds for run in runs.values()]
    return EvaluationMetrics(
        protocol=_protocol(runs, patients, rule, protocol),
        test=test,
        baseline_mean=mean,
        baseline_ridge=ridge,
        noise_ceiling=ceiling,
        prediction_intervals=_coverage(runs),
        gain_over_mean=None if mean is None else gain(test, mean, patients),
        gain_over_ridge=None if ridge is None else gain(test, ridge, patients),
        seconds={key: sum(one[key] for one in seconds) for key in seconds[0]},
    )


def _ceiling(runs: Runs) -> NoiseCeiling | None:
    """What a perfect predictor would score: it is the same for every seed.

    None where a fold does not tell, as those of earlier versions: it would be the ceiling of other slides.
    """
    found = [run.noise_ceiling for run in runs.values()]
    slides = {name: slide for one in found if one is not None for name, slide in one.slides.items()}
    return None if None in found else ceiling_of(slides)


def _coverage(runs: Runs) -> PredictionIntervals | None:
    """How often intervals held the truth, a mean over slides, and how wide they were, a mean over folds."""
    found = [run.prediction_intervals for run in runs.values() if run.prediction_intervals is not None]
    if not found:
        return None
    slides = {
        name: _mean(one.slides[name] for one in found if name in one.slides)
        for one in found
        for name in one.slides
    }
    return PredictionIntervals(
        level=found[0].level,
        calibrated_on=", ".join(sorted({one.calibrated_on for one in found})),
        patients=min(one.patients for one in found),
        coverage=_mean(slides.values()),
        width=_mean(one.width for one in found),
        slides=slides,
        widened=max(one.widened for one in found),
        condition=max(found, key=lambda one: one.widened).condition,
    )


def gain(test: Scores, other: Scores, patients: Patients) -> dict[str, Difference]:
    """How far one predictor's scores lie above another's, by metric, with intervals over patients."""
    names = [name for name in test.slides if name in other.slides]
    return {
        metric: paired_difference(
            [test.of_slide(name, metric) for name in names],
            [other.of_slide(name, metric) for name in names],
            [patients[name] for name in names],
        )
        for metric in PER_SLIDE
    }


def gene_rows(files: Sequence[Path]) -> list[dict[str, object]]:
    """Rows of genes.csv: means over the slides of all folds (and over seeds), genes of the most folds first.

    Panels that are chosen in each fold differ: ``folds`` is the number of folds that a gene was in, and
    ``slides`` the number of slides that it was tested on; scores are empty where that is none.
    """
    joined = pl.concat([pl.read_csv(file, infer_schema=False, glob=False) for file in files], how="diagonal")
    scores = [column for column in joined.columns if column not in ("gene", "gene_id", "slides")]
    numbers = joined.with_columns(pl.col("slides").cast(pl.Int64), pl.col(scores).cast(pl.Float64))

    def mean(column: str) -> pl.Expr:
        known = pl.col(column).is_not_null()
        weight = pl.col("slides").filter(known)
        return ((pl.col(column).filter(known) * weight).sum() / weight.sum()).alias(column)

    seeds = len({file.parent.name for file in files})
    return (
        numbers.group_by("gene", maintain_order=True)
        .agg(
            pl.col("gene_id").first(),
            (pl.len() // seeds).alias("folds"),
            (pl.col("slides").sum() // seeds).alias("slides"),
            *(mean(column) for column in scores),
        )
        .sort("folds", descending=True, maintain_order=True)
        .to_dicts()
    )


def _protocol(runs: Runs, patients: Patients, rule: str, protocol: str) -> FoldsProtocol:
    seeds = sorted({seed for _, seed in runs})
    folds = {fold: run.protocol for (fold, seed), run in runs.items() if seed == seeds[0]}
    first = next(iter(folds.values()))
    return FoldsProtocol(
        name=protocol,
        folds=rule,
        fold_slides={name: fold.test for name, fold in folds.items()},
        seeds=tuple(seeds),
        validation=tuple(sorted({fold.validation for fold in folds.values()})),
        patients=len({patients[slide] for fold in folds.values() for slide in fold.test} - {None}),
        shared_patients=tuple(sorted({p for fold in folds.values() for p in fold.shared_patients})),
        panel=first.panel,
        genes=tuple(sorted({fold.genes for fold in folds.values()})),
        normalisation=first.normalisation,
        smoothed=first.smoothed,
        spots_without_target=_of_test_slides({n: (f, f.spots_without_target) for n, f in folds.items()}),
        invalid_spots=_of_test_slides({n: (f, f.invalid_spots) for n, f in folds.items()}),
        genes_lacking=_of_test_slides({n: (f, f.genes_lacking) for n, f in folds.items()}),
        chosen={name: fold.chosen for name, fold in folds.items()},
    )


def _of_test_slides(folds: Mapping[str, tuple[RunProtocol, Mapping[str, int]]]) -> dict[str, int]:
    """What each fold counted on the slides that it tests."""
    return {
        slide: counted[slide] for fold, counted in folds.values() for slide in fold.test if slide in counted
    }


def _scores(
    found: Mapping[tuple[str, int], Scores | None], patients: Patients, ceiling: NoiseCeiling | None
) -> Scores | None:
    """Scores of one predictor: means over slides, each slide a mean over seeds; None where no run has any."""
    runs = {key: scores for key, scores in found.items() if scores is not None}
    if not runs:
        return None
    by_seed: dict[int, dict[str, SlideScores]] = {seed: {} for seed in sorted({seed for _, seed in runs})}
    for (fold, seed), scores in runs.items():
        by_seed[seed] |= {
            name: replace(slide, fold=fold, patient=patients[name]) for name, slide in scores.slides.items()
        }
    seeds = list(by_seed.values())
    slides = {name: _mean_slide([of[name] for of in seeds]) for name in seeds[0]}
    means = {
        metric: [_mean(getattr(slide, key) for slide in of.values()) for of in seeds]
        for metric, key in PER_SLIDE.items()
    }
    every = list(runs.values())
    merged = Scores(
        slides=slides,
        pcc_slide=_mean(means["pcc_slide"]),
        pcc_slide_hvg50=_mean(means["pcc_slide_hvg50"]),
        pcc_pooled=_mean(scores.pcc_pooled for scores in every),
        mse=_mean(means["mse"]),
        mae=_mean(means["mae"]),
        spread={metric: float(np.std(values, ddof=1)) for metric, values in means.items()}
        if len(seeds) > 1
        else None,
    )
    if every[0].mse_pooled is not None:
        pooled = ("mse_pooled", "mae_pooled", "mse_zscored", "mae_zscored")
        merged = merged.with_pooled(PooledErrors(*(_mean(getattr(s, key) for s in every) for key in pooled)))
    whose = [patients[name] for name in slides]
    intervals = {
        metric: interval_over_patients([merged.of_slide(name, metric) for name in slides], whose)
        for metric in PER_SLIDE
    }
    return replace(merged, intervals=intervals).below(ceiling)


def _mean_slide(of_seeds: Sequence[SlideScores]) -> SlideScores:
    """Mean over seeds of one slide's scores."""
    return replace(
        of_seeds[0],
        pcc=_mean(scores.pcc for scores in of_seeds),
        mse=_mean(scores.mse for scores in of_seeds),
        mae=_mean(scores.mae for scores in of_seeds),
        undefined_genes=_mean(scores.undefined_genes for scores in of_seeds),
        pcc_hvg50=_mean(scores.pcc_hvg50 for scores in of_seeds),
    )


def _mean(values: Iterable[float | None]) -> float:
    """Of those that are numbers; NaN where none is."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
