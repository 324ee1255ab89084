"""`mmap compare`: run what is not done of every row, and sum up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmap_st.data import Cohort, read_labels
from mmap_st.errors import HeadError, LabelsError, RequestError, SplitError
from mmap_st.extract.store import (
    FeatureStore,
    check_encoder,
    check_same_recipe,
    common_magnifications,
    encode_name,
)
from mmap_st.extract.windows import mpp_key
from mmap_st.head.dataset import check_tokens, missing_embedding_reason
from mmap_st.head.evaluation.comparison_rows import CompareRequest, Mpps, Row, make_rows, scatter_pair
from mmap_st.head.evaluation.comparison_summary import (
    RowResult,
    comparison,
    flat_rows,
    row_with_scores,
    row_without_scores,
)
from mmap_st.head.evaluation.cross_validation import (
    EvaluateReport,
    ReadyCohort,
    check_genes,
    collect,
    prepare,
    read_cohort,
)
from mmap_st.head.evaluation.fold_jobs import Job, jobs_side_by_side, run_jobs
from mmap_st.head.evaluation.folder import (
    COMPARISON,
    REQUEST,
    EvaluateRequest,
    check_kind,
    evaluation_folder,
    write_json_whole,
)
from mmap_st.head.runs import (
    GENES,
    METRICS,
    PREDICTIONS,
    count_parameters,
    prediction_file,
    read_json,
    read_prediction,
    write_table,
    writing,
)
from mmap_st.head.scoring import region_agreement

COMPARE_JSON, COMPARE_CSV, ROWS = "compare.json", "compare.csv", "rows"

Tell = Callable[[str], None]
Labels = Mapping[str, Mapping[str, str]]


@dataclass
class CompareReport:
    """What was compared.

    Attributes
    ----------
    result
        Contents of compare.json.
    passed_over, failed
        Slides that were not used or not scored, with the reason.
    failed_folds
        Folds that could not be fitted or scored, by row, with the reason.
    pair
        Keys of two evaluated rows to show gene by gene; None: there are none.
    warnings
        What the user should know.
    """

    result: dict[str, Any] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    failed_folds: dict[str, str] = field(default_factory=dict)
    pair: tuple[str, str] | None = None
    warnings: list[str] = field(default_factory=list)


def compare(
    cohort: Cohort,
    store: FeatureStore,
    request: CompareRequest,
    out: Path,
    tell: Tell = lambda text: None,
) -> CompareReport:
    """Evaluate every row on the same folds, and write RUN/; fits that a killed run finished are kept.

    Raises
    ------
    RequestError
        If nothing can be compared, or `out` holds something else.
    """
    report = CompareReport()
    with evaluation_folder(out):
        check_kind(out, comparison=True)
        ready, mpps = _read_cohort(cohort, store, request, report, tell)
        rows = make_rows(request, mpps)
        pair = scatter_pair(rows, request.scatter)
        lacking = _lacking(ready, rows)
        check_genes(ready, replace(rows[0].fit, mpps=rows[0].mpps))
        with writing(out):
            write_json_whole(out / REQUEST, {COMPARISON: [row.key for row in rows]})
        labels = _read_labels(ready, report)
        results = _evaluate_rows(ready, request, rows, lacking, labels, out, report, tell)
        protocols = [metrics["protocol"] for _, metrics in results if metrics]
        protocol = max(protocols, key=lambda protocol: len(protocol["seeds"]), default=None)
        report.result = comparison([result for result, _ in results], protocol, ready.patients)
        with writing(out):
            write_table(out / COMPARE_CSV, flat_rows(report.result["rows"]))
            write_json_whole(out / COMPARE_JSON, report.result)
    evaluated = {row["key"] for row in report.result["rows"] if not row["reason"]}
    report.pair = pair if pair and evaluated.issuperset(pair) else None
    return report


def row_folder(out: Path, encoder: str, head: str, mpps: Sequence[float]) -> Path:
    """Where a row is evaluated; magnifications are in its name, so that sets can be added later."""
    at = "_".join(mpp_key(mpp) for mpp in mpps)
    return out / ROWS / encode_name(encoder) / encode_name(head) / at


def row_genes(out: Path, row: Mapping[str, Any]) -> Path:
    """The genes.csv of a row of compare.json."""
    return row_folder(out, row["encoder"], row["head"], row["magnifications"]) / GENES


def _read_cohort(
    cohort: Cohort, store: FeatureStore, request: CompareRequest, report: CompareReport, tell: Tell
) -> tuple[ReadyCohort, dict[Mpps | None, Mpps]]:
    """The slides that every encoder has, and what each set of magnifications comes to."""
    for encoder in request.encoders:
        check_encoder(store, encoder)
    asked = [replace(request.heads[0], mpps=mpps).magnifications for mpps in request.magnifications]
    lacking = {
        name: reason
        for name in cohort.names
        for encoder in reversed(request.encoders)
        for mpps in asked
        if (reason := missing_embedding_reason(store, name, encoder, mpps))
    }
    kept = tuple(slide for slide in cohort.slides if slide.slide not in lacking)
    if not kept:
        name, reason = next(iter(lacking.items()))
        raise SplitError(f"none of the {len(cohort.slides)} slides has all encoders; slide {name}: {reason}")
    first = replace(request.heads[0], encoder=request.encoders[0], mpps=request.magnifications[0])
    read = EvaluateReport()
    ready = read_cohort(
        replace(cohort, slides=kept), store, EvaluateRequest(first, request.folds), read, tell
    )
    report.passed_over, report.failed = {**lacking, **read.passed_over}, read.failed
    report.warnings += read.warnings
    stored = [store.slide(name) for name in ready.material.counts]
    found: dict[Mpps | None, Mpps] = {}
    for mpps in asked:
        of_encoders = [common_magnifications(stored, encoder, mpps) for encoder in request.encoders]
        found[mpps] = tuple(mpp for mpp in of_encoders[0] if all(mpp in other for other in of_encoders))
        if not found[mpps]:
            raise RequestError(
                f"no magnification is complete for all of {', '.join(request.encoders)} on every slide;"
                " extract what is missing, or compare fewer encoders."
            )
        for encoder in request.encoders:
            check_same_recipe(stored, encoder, found[mpps])
    return ready, found


def _evaluate_rows(
    ready: ReadyCohort,
    request: CompareRequest,
    rows: Sequence[Row],
    lacking: Mapping[str, str],
    labels: Labels,
    out: Path,
    report: CompareReport,
    tell: Tell,
) -> list[tuple[RowResult, dict[str, Any] | None]]:
    """Each row's result, and its metrics.json where it has one; the fits of all rows run side by side."""
    evaluations = {
        row.key: EvaluateRequest(
            row.fit, request.folds, request.seeds if row.fit.method.seeded else request.seeds[:1]
        )
        for row in rows
    }
    readies = {row.key: replace(ready, mpps=row.mpps) for row in rows}
    folders = {row.key: row_folder(out, row.fit.encoder, row.head, row.mpps) for row in rows}
    jobs: dict[str, list[Job]] = {}
    for row in rows:
        if row.key in lacking:
            continue
        jobs[row.key] = prepare(readies[row.key], evaluations[row.key], folders[row.key], tell, row.key)
    every = [job for of_row in jobs.values() for job in of_row]
    failures: dict[Path, str] = {}
    if not all(job.done for job in every):
        side_by_side = min(
            jobs_side_by_side(request.jobs, len(every), row.fit.settings, ready.material.counts_bytes)
            for row in rows
            if row.key in jobs
        )
        failures = run_jobs(ready.material, every, side_by_side, tell)
    results: list[tuple[RowResult, dict[str, Any] | None]] = []
    for row in rows:
        if row.key in lacking:
            results.append((row_without_scores(row, lacking[row.key]), None))
            continue
        tell(f"{row.key}: scores")
        own = EvaluateReport()
        try:
            metrics = collect(
                readies[row.key], evaluations[row.key], jobs[row.key], failures, folders[row.key], own
            )
        except RequestError as error:
            report.failed_folds[row.key] = str(error)
            results.append((row_without_scores(row, str(error)), None))
            continue
        report.failed |= own.failed
        if own.failed_folds:  # scores over fewer folds would not compare
            fold, reason = next(iter(own.failed_folds.items()))
            report.failed_folds |= {f"{row.key}, {name}": why for name, why in own.failed_folds.items()}
            results.append((row_without_scores(row, f"fold {fold}: {reason}"), None))
            continue
        results.append((_scored(row, metrics, jobs[row.key], labels), metrics))
    return results


def _lacking(ready: ReadyCohort, rows: Sequence[Row]) -> dict[str, str]:
    """Why some rows do not apply to what is stored, by key.

    Raises
    ------
    RequestError
        If none applies.
    """
    stored = [ready.store.slide(name) for name in ready.material.counts]
    found = {}
    for row in rows:
        try:
            check_tokens(stored, row.fit.encoder, row.mpps, row.fit.method)
        except HeadError as error:
            found[row.key] = str(error)
    if len(found) == len(rows):
        raise RequestError(next(iter(found.values())))
    return found


def _scored(row: Row, metrics: Mapping[str, Any], jobs: Sequence[Job], labels: Labels) -> RowResult:
    runs = [read_json(job.out / METRICS)["seconds"] for job in jobs]
    seconds = {key: float(np.mean([one[key] for one in runs])) for key in ("fit", "predict")}
    return row_with_scores(row, metrics, seconds, count_parameters(jobs[0].out), _agreement(jobs, labels))


def _agreement(jobs: Sequence[Job], labels: Labels) -> dict[str, float | None]:
    """Of each labelled slide, the mean over seeds."""
    found: dict[str, list[float]] = {}
    for job in jobs:
        for name in job.fold.split.test:
            if name in labels:
                table = read_prediction(prediction_file(job.out / PREDICTIONS, name))
                index = region_agreement(np.asarray(table.X), list(table.obs_names), labels[name])
                found.setdefault(name, []).extend([] if index is None else [index])
    return {name: float(np.mean(values)) if values else None for name, values in found.items()}


def _read_labels(ready: ReadyCohort, report: CompareReport) -> dict[str, dict[str, str]]:
    """A pathologist's labels of the slides that have some; a table that cannot be read is told of."""
    found = {}
    for name, counts in ready.material.counts.items():
        path = ready.material.cohort[name].labels
        if path is None:
            continue
        try:
            labels = read_labels(path)
            if not set(labels) & set(counts.ids):
                raise LabelsError(
                    f"no spot of {path} is one of the slide's; check that they belong together."
                )
            found[name] = labels
        except LabelsError as error:
            report.warnings.append(f"labels of {name} are left out: {error}")
    return found
