"""`mmap fit-head`: train one head on a split of a cohort, predict and score its test slides."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import (
    AS_GIVEN,
    Cohort,
    Counts,
    Panel,
    Split,
    choose_panel,
    harmonise_genes,
    normalisation_of,
    resolve_split,
)
from mmap_st.errors import NormalisationError, SplitError
from mmap_st.extract.store import FeatureStore, check_encoder, check_same_recipe, common_magnifications
from mmap_st.head.dataset import (
    check_tokens,
    load_slide,
    prototype_settings,
    read_cohort_counts,
    with_stored_patients,
    with_targets,
)
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import FittedHead, HeldOut, plan_validation, predict_held_out, subsample_step
from mmap_st.head.linear import MEAN, RIDGE, MeanSettings, RidgeSettings
from mmap_st.head.row_cache import RowCache
from mmap_st.head.runs.metrics_file import Fitted
from mmap_st.head.runs.prediction import prediction_file, write_prediction
from mmap_st.head.runs.request import EvaluationProtocol, FitRequest
from mmap_st.head.runs.run_folder import (
    GENES,
    METRICS,
    PREDICTIONS,
    begin_run_folder,
    check_run_folder,
    finish_run_folder,
    write_head,
    write_json,
    write_table,
    writing,
)
from mmap_st.head.scoring import Spread, fit_spread

Tell = Callable[[str], None]


@dataclass
class FitReport:
    """What was fitted.

    Attributes
    ----------
    metrics
        Contents of metrics.json.
    passed_over, failed
        Slides that were not used, with the reason.
    warnings
        What the user should know.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def fit_head(
    cohort: Cohort, store: FeatureStore, request: FitRequest, out: Path, tell: Tell = lambda text: None
) -> FitReport:
    """Train a head and write RUN/.

    Returns
    -------
    What was done. Slides with faults are left out and reported.

    Raises
    ------
    RequestError
        If nothing can be fitted, or the request contradicts itself.
    """
    check_run_folder(out)
    cohort = with_stored_patients(cohort, store)
    asked = resolve_split(cohort, request.train, request.validation, request.test or request.protocol.test)
    names = (*asked.train, *asked.validation, *asked.test)
    measured = read_cohort_counts(cohort, store, names, request.encoder, request.magnifications, tell)
    if not measured.counts and not measured.failed:
        check_encoder(store, request.encoder)
    split = measured.usable(cohort, asked)
    _check_split(asked, split, {**measured.skipped, **measured.failed})
    report = FitReport(passed_over=measured.skipped, failed=measured.failed)
    if split.shared_patients:
        report.warnings.append(shared_patients_warning(split.shared_patients))
    report.metrics = fit_split(cohort, store, request, split, measured.counts, out, tell)
    scored = (report.metrics["test"] or {"slides": split.test})["slides"]
    for name in split.test:
        if name not in scored:
            report.failed[name] = "none of its spots has both a valid embedding and a target"
    return report


def fit_split(
    cohort: Cohort,
    store: FeatureStore,
    request: FitRequest,
    split: Split,
    counts: Mapping[str, Counts],
    out: Path,
    tell: Tell = lambda text: None,
) -> dict[str, Any]:
    """Train a head on slides whose counts were read, and write RUN/.

    Parameters
    ----------
    counts
        Of every slide of `split`, in the spot order of the store.

    Returns
    -------
    Contents of metrics.json.
    """
    names = (*split.train, *split.validation, *split.test)
    stored = [store.slide(name) for name in names]
    mpps = common_magnifications(stored, request.encoder, request.magnifications)
    recipe = check_same_recipe(stored, request.encoder, mpps)
    check_tokens(stored, request.encoder, mpps, request.method)
    counts = harmonise_genes({name: counts[name] for name in names})
    panel, normalisation = choose_genes(store, request, split, counts)

    draft = begin_run_folder(out)
    started = time.perf_counter()
    wanted = prototype_settings(request.settings, request.seed)
    loaded, cache = {}, RowCache()
    for name in names:
        tell(f"prototypes of {name}" if wanted else f"embeddings of {name}")
        loaded[name] = load_slide(
            store,
            name,
            request.encoder,
            mpps,
            patient=cohort[name].patient,
            prototypes=wanted,
            tokens=request.method.tokens,
            cache=cache,
        )
    slides = with_targets(loaded, counts, panel.genes, normalisation)
    seconds = {"prototypes": time.perf_counter() - started if wanted else 0.0}

    train = [slides[name] for name in split.train]
    held_back = [slides[name] for name in split.validation]
    test = [slides[name] for name in split.test]
    # As the test is: folds of slides are like it only where its patients are in training too.
    by_slide = request.protocol.folds_by_slide and bool(split.shared_patients)
    validation = plan_validation(train, held_back, by_slide=by_slide)
    started = time.perf_counter()
    head = request.method.fit(train, validation, request.settings, request.seed, tell)
    seconds["fit"] = time.perf_counter() - started
    fitted = Fitted(
        request, split, panel, normalisation, recipe, mpps, train, held_back, test, validation, head
    )

    started = time.perf_counter()
    predicted = _predict(head, test)
    seconds["predict"] = time.perf_counter() - started
    started = time.perf_counter()
    spread = fit_spread(_held_out(head, held_back))
    for slide in test:
        _write_prediction(cohort, store, fitted, slide, predicted[slide.name], spread, draft / PREDICTIONS)
    seconds["calibrate"] = time.perf_counter() - started

    metrics: dict[str, Any] = {"protocol": fitted.protocol()}
    metrics |= {"test": fitted.scores(predicted) if test else None}
    metrics["prediction_intervals"] = fitted.intervals(spread, predicted) if test and spread else None
    ridge = None
    if request.baselines:
        mean = MEAN.fit(train, validation, MeanSettings(), request.seed, tell) if test else None
        metrics["baseline_mean"] = None if mean is None else fitted.scores(_predict(mean, test))
        probe = RIDGE.fit(train, validation, RidgeSettings(), request.seed, tell) if test else None
        ridge = None if probe is None else _predict(probe, test)
        metrics["baseline_ridge"] = None if ridge is None else fitted.scores(ridge)
    metrics["seconds"] = seconds
    with writing(out):
        if test:
            write_table(draft / GENES, fitted.genes(predicted, ridge))
        write_head(draft, head, fitted.card(), spread)
        write_json(draft / METRICS, metrics)
        finish_run_folder(draft, out)
    return metrics


def shared_patients_warning(patients: Sequence[str]) -> str:
    """What a user should know of patients who are in training and in test."""
    return (
        f"patients {', '.join(patients)} are in training and in test: the scores say nothing about new"
        " patients"
    )


def _held_out(head: FittedHead, held_back: Sequence[HeadSlide]) -> Sequence[HeldOut]:
    """Predictions to calibrate on: of the slides that validate, else of the inner folds."""
    if not held_back:
        return head.held_out()
    step = subsample_step(sum(int(slide.usable.sum()) for slide in held_back), held_back[0].targets.genes)
    return [predict_held_out(head, slide, step) for slide in held_back]


def _predict(head: FittedHead, slides: Sequence[HeadSlide]) -> dict[str, NDArray[np.float32]]:
    return {slide.name: head.predict(slide) for slide in slides}


def _write_prediction(
    cohort: Cohort,
    store: FeatureStore,
    fitted: Fitted,
    slide: HeadSlide,
    predicted: NDArray[np.float32],
    spread: Spread | None,
    folder: Path,
) -> None:
    image = cohort[slide.name].image
    about = {
        "head": fitted.request.method.name,
        "encoder": fitted.request.encoder,
        "normalisation": fitted.normalisation,
        "image": None if image is None else str(image.resolve()),
        "source_mpp": store.slide(slide.name).source_mpp,
    }
    path = prediction_file(folder, slide.name)
    write_prediction(path, slide, predicted, fitted.panel.genes, about, spread)


def _check_split(asked: Split, split: Split, why: dict[str, str]) -> None:
    for role, flag in (("train", "--train"), ("validation", "--val"), ("test", "--test")):
        wanted: Sequence[str] = getattr(asked, role)
        if wanted and not getattr(split, role):
            name = wanted[0]
            raise SplitError(
                f"none of the {len(wanted)} slides of {flag} can be used; slide {name}: {why[name]}"
            )


def choose_genes(
    store: FeatureStore, request: FitRequest, split: Split, counts: Mapping[str, Counts]
) -> tuple[Panel, str]:
    """The panel of a split and the normalisation of targets.

    The panel is chosen on the training slides, or on all where the protocol says so: it is then in `how`.

    Parameters
    ----------
    counts
        Of the slides of the split and no others, their genes named alike.

    Raises
    ------
    RequestError
        If either cannot be had.
    """
    normalisation = _normalisation(request.protocol, normalisation_of(counts))
    chosen_on = tuple(counts) if request.protocol.panel_on_all_slides else split.train
    tables = {name: counts[name] for name in chosen_on}
    places = {name: store.slide(name).spot_xy() for name in chosen_on}
    panel = choose_panel(request.panel, tables, normalisation, request.gene_set, places)
    if not set(panel.slides) <= set(split.train):
        included = ", test included" if split.test else ""
        panel = replace(panel, how=f"{panel.how}, chosen on all slides{included}")
    return panel, normalisation


def _normalisation(protocol: EvaluationProtocol, suits: str) -> str:
    """The protocol's own, or the one that suits the tables."""
    if protocol.normalisation is None:
        return suits
    if suits == AS_GIVEN:
        raise NormalisationError(
            f"--protocol {protocol.name} needs counts, and the tables hold log-normalised values."
        )
    return protocol.normalisation
