"""What the runs of all folds and seeds add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmap_st.head.scoring import difference, interval_over_patients

#: Metrics that a slide has of its own, by their name in a summary.
PER_SLIDE = {"pcc_slide": "pcc", "pcc_slide_hvg50": "pcc_hvg50", "mse": "mse", "mae": "mae"}
# Of each slide, in a run's protocol.
_COUNTED = ("spots_without_target", "invalid_spots", "genes_lacking")
# Of a slide, and the same for every seed.
_SAME = ("n_spots", "fold")
ROWS = ("test", "baseline_mean", "baseline_ridge")

#: Of each slide; None: not known.
Patients = Mapping[str, str | None]
Runs = Mapping[tuple[str, int], Mapping[str, Any]]


def evaluation_metrics(runs: Runs, patients: Patients, rule: str, protocol: str) -> dict[str, Any]:
    """Contents of an evaluation's metrics.json.

    Parameters
    ----------
    runs
        metrics.json of each fold and seed.
    patients
        Of each slide; None: not known.
    rule
        How folds were made.
    protocol
        Its name.

    Returns
    -------
    The keys of a run's metrics.json. A slide's scores are means over seeds; ``pcc_pooled`` is a mean over
    folds. Beside them ``intervals`` over patients, ``spread`` over seeds, and ``gain_over_ridge`` and
    ``gain_over_mean``.
    """
    seeds = sorted({seed for _, seed in runs})
    result: dict[str, Any] = {"protocol": _protocol(runs, seeds, patients, rule, protocol)}
    for row in ROWS:
        found = {key: run[row] for key, run in runs.items() if row in run}
        if found:
            result[row] = _row(found, patients)
    result["prediction_intervals"] = _coverage(runs)
    for name, row in (("gain_over_mean", "baseline_mean"), ("gain_over_ridge", "baseline_ridge")):
        if row in result:
            result[name] = gain(result["test"], result[row], patients)
    seconds = [run["seconds"] for run in runs.values()]
    result["seconds"] = {key: sum(one[key] for one in seconds) for key in seconds[0]}
    return result


def _coverage(runs: Runs) -> dict[str, Any] | None:
    """How often intervals held the truth, a mean over slides, and how wide they were, a mean over folds."""
    found = [run["prediction_intervals"] for run in runs.values() if run.get("prediction_intervals")]
    if not found:
        return None
    slides = {
        name: _mean([one["slides"][name] for one in found if name in one["slides"]])
        for one in found
        for name in one["slides"]
    }
    return {
        "level": found[0]["level"],
        "calibrated_on": ", ".join(sorted({one["calibrated_on"] for one in found})),
        "patients": min(one["patients"] for one in found),
        "coverage": _mean(list(slides.values())),
        "width": _mean([one["width"] for one in found]),
        "slides": slides,
    }


def gain(test: Mapping[str, Any], other: Mapping[str, Any], patients: Patients) -> dict[str, dict[str, Any]]:
    """How far one row lies above another, metric by metric, with an interval over patients."""
    names = [name for name in test["slides"] if name in other["slides"]]
    return {
        metric: asdict(
            difference(
                [_value(test, name, key) for name in names],
                [_value(other, name, key) for name in names],
                [patients[name] for name in names],
            )
        )
        for metric, key in PER_SLIDE.items()
    }


def gene_rows(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows of genes.csv: means over the slides of all folds (and over seeds), genes of the most folds first.

    Panels that are chosen in each fold differ: ``folds`` tells in how many a gene was, ``slides`` on how many
    it was tested; scores are empty where that is none.
    """
    joined = pl.concat([pl.read_csv(file, infer_schema=False) for file in files], how="diagonal")
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


def _protocol(
    runs: Runs, seeds: Sequence[int], patients: Patients, rule: str, protocol: str
) -> dict[str, Any]:
    folds = {fold: run["protocol"] for (fold, seed), run in runs.items() if seed == seeds[0]}
    shared = sorted({patient for fold in folds.values() for patient in fold["shared_patients"]})
    first = next(iter(folds.values()))
    return {
        "name": protocol,
        "folds": rule,
        "fold_slides": {name: fold["test"] for name, fold in folds.items()},
        "seeds": list(seeds),
        "validation": sorted({fold["validation"] for fold in folds.values()}),
        "patients": len({patients[slide] for fold in folds.values() for slide in fold["test"]} - {None}),
        "shared_patients": shared,
        "panel": first["panel"],
        "genes": sorted({fold["genes"] for fold in folds.values()}),
        "normalisation": first["normalisation"],
        "smoothed": first["smoothed"],
        **{key: _of_test_slides(folds, key) for key in _COUNTED},
        "chosen": {name: fold["chosen"] for name, fold in folds.items()},
    }


def _of_test_slides(folds: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, int]:
    """What each fold counted on the slides that it tests."""
    return {
        slide: fold[key][slide] for fold in folds.values() for slide in fold["test"] if slide in fold[key]
    }


def _row(found: Mapping[tuple[str, int], Mapping[str, Any]], patients: Patients) -> dict[str, Any]:
    """One row of results: means over slides, each slide a mean over seeds."""
    seeds = sorted({seed for _, seed in found})
    by_seed = {
        seed: {
            name: {**scores, "fold": fold}
            for (fold, of), row in found.items()
            if of == seed
            for name, scores in row["slides"].items()
        }
        for seed in seeds
    }
    slides = {
        name: {
            key: value if key in _SAME else _mean([by_seed[seed][name][key] for seed in seeds])
            for key, value in scores.items()
        }
        for name, scores in by_seed[seeds[0]].items()
    }
    of_seed = {
        metric: [_mean([scores[key] for scores in by_seed[seed].values()]) for seed in seeds]
        for metric, key in PER_SLIDE.items()
    }
    row: dict[str, Any] = {"slides": slides}
    row |= {metric: _mean(values) for metric, values in of_seed.items()}
    # What is of a fold as a whole, such as the pooled PCC, is a mean over folds and seeds.
    of_folds = [key for key in next(iter(found.values())) if key not in (*PER_SLIDE, "slides")]
    row |= {key: _mean([one[key] for one in found.values()]) for key in of_folds}
    whose = [patients[name] for name in slides]
    row["intervals"] = {
        metric: interval_over_patients([_value(row, name, key) for name in slides], whose)
        for metric, key in PER_SLIDE.items()
    }
    if len(seeds) > 1:
        row["spread"] = {metric: float(np.std(values, ddof=1)) for metric, values in of_seed.items()}
    return row


def _value(row: Mapping[str, Any], slide: str, key: str) -> float:
    value = row["slides"][slide][key]
    return float("nan") if value is None else float(value)


def _mean(values: Sequence[float | None]) -> float:
    """Of those that are numbers: JSON has null where a score is undefined."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
