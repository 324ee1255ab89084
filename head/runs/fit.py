"""`mmap fit-head`: train one head on a split of a cohort, predict and score its test slides."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from mmap_st.data import (
    Cohort,
    Counts,
    Split,
    ThumbnailReader,
    harmonise_genes,
    no_thumbnail,
    resolve_split,
    signal_share,
)
from mmap_st.errors import SplitError, first_line, none_of
from mmap_st.extract.store import (
    FeatureStore,
    Recipe,
    check_same_recipe,
    staying,
)
from mmap_st.files import absolute_place
from mmap_st.head.attending import predict_and_attend
from mmap_st.head.dataset import (
    check_encoders,
    check_tokens,
    encoders_of,
    load_slide,
    magnifications_of_all,
    prototype_settings,
    read_cohort_counts,
    row_cache,
    with_stored_patients,
    with_targets,
)
from mmap_st.head.domain import domain_folds
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import FittedHead, HeldOut, plan_validation, predict_held_out, subsample_step
from mmap_st.head.joined import fit_joined, fit_joined_domain, join_slides
from mmap_st.head.linear import MEAN, RIDGE, MeanSettings, RidgeSettings
from mmap_st.head.runs.metrics_file import FittedRun, RunMetrics
from mmap_st.head.runs.panel_notes import choose_genes, notes_on_genes
from mmap_st.head.runs.prediction_files import (
    ATTENTION_OF,
    CALIBRATION,
    HEAD_SHA256,
    prediction_file,
    prediction_table,
    write_prediction,
)
from mmap_st.head.runs.request import FitRequest
from mmap_st.head.runs.run_folder import (
    GENES,
    METRICS,
    PREDICTIONS,
    finish_run_folder,
    run_folder,
    start_run_folder,
    write_table,
    writing,
)
from mmap_st.head.runs.saved_head import count_parameters, write_head
from mmap_st.head.runs.spatial_metadata import spatial_metadata_of
from mmap_st.head.runs.suitability import judge_slide, most_enlarged, training_slides
from mmap_st.head.scoring import fit_spread, fit_trust, write_json
from mmap_st.head.sharing import fit_facts, write_card
from mmap_st.progress import ProgressCallback


@dataclass(frozen=True)
class FitReport:
    """What was fitted.

    Attributes
    ----------
    metrics
        Contents of metrics.json.
    skipped
        Slides that are missing something, with the reason.
    failed
        Slides that have a fault or could not be scored, with the reason.
    warnings
        What the user should know.
    """

    metrics: RunMetrics
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def fit_head(
    cohort: Cohort,
    store: FeatureStore,
    request: FitRequest,
    out: Path,
    tell: ProgressCallback = lambda text: None,
    *,
    overwrite: bool = False,
    thumbnail_of: ThumbnailReader = no_thumbnail,
) -> FitReport:
    """Train a head and write RUN/.

    Parameters
    ----------
    out
        Folder of the run; it is there as a whole, or as it was before.
    tell
        Called with what is being done.
    overwrite
        Whether a run that is in `out` is replaced.
    thumbnail_of
        Reads the images of test slides, for what is drawn behind their predictions.

    Returns
    -------
    What was done. Slides with faults are left out and reported.

    Raises
    ------
    RequestError
        If nothing can be fitted, the request contradicts itself, or `out` holds a run, or something else.
    """
    with run_folder(out, overwrite=overwrite):
        return _fit_head(cohort, store, request, out, tell, thumbnail_of)


def _fit_head(
    cohort: Cohort,
    store: FeatureStore,
    request: FitRequest,
    out: Path,
    tell: ProgressCallback,
    thumbnail_of: ThumbnailReader,
) -> FitReport:
    cohort = with_stored_patients(cohort, store)
    encoders = encoders_of(request.encoder, store)
    request = replace(request, encoder=",".join(encoders))
    requested = resolve_split(
        cohort, request.train, request.validation, request.test or request.protocol.test
    )
    names = (*requested.train, *requested.validation, *requested.test)
    measured = read_cohort_counts(cohort, store, names, request.encoder, request.magnifications, tell)
    if not measured.counts and not measured.failed:
        check_encoders(store, encoders)
    split = measured.usable(cohort, requested)
    _check_split(requested, split, {**measured.skipped, **measured.failed})
    warnings = []
    if split.shared_patients:
        warnings.append(shared_patients_warning(split.shared_patients))
    if split.shared_patients_validation:
        warnings.append(
            f"patients {', '.join(split.shared_patients_validation)} are in training and in validation:"
            " choices are made on patients that the head has seen, and may not suit new ones"
        )
    warnings += notes_on_genes(request, split, measured.counts)
    metrics = fit_split(cohort, store, request, split, measured.counts, out, tell, thumbnail_of)
    failed = dict(measured.failed)
    for name in split.test:
        if metrics.test is not None and name not in metrics.test.slides:
            failed[name] = NOT_SCORED
    return FitReport(metrics, measured.skipped, failed, warnings)


def fit_split(
    cohort: Cohort,
    store: FeatureStore,
    request: FitRequest,
    split: Split,
    counts: Mapping[str, Counts],
    out: Path,
    tell: ProgressCallback = lambda text: None,
    thumbnail_of: ThumbnailReader = no_thumbnail,
) -> RunMetrics:
    """Train a head on slides whose counts were read, and write RUN/.

    Parameters
    ----------
    counts
        Of every slide of `split`, in the spot order of the store.
    """
    names = (*split.train, *split.validation, *split.test)
    stored = [store.slide(name) for name in names]
    encoders = encoders_of(request.encoder, store)
    mpps = magnifications_of_all(stored, encoders, request.magnifications)
    recipes = {encoder: check_same_recipe(stored, encoder, mpps) for encoder in encoders}
    for encoder in encoders:
        check_tokens(stored, encoder, mpps, request.method)
    with staying(store.path, names, encoders, mpps):
        draft, metrics = _fit_draft(
            cohort, store, request, split, counts, mpps, recipes, out, tell, thumbnail_of
        )
    with writing(out):
        finish_run_folder(draft, out)
    return metrics


def _fit_draft(
    cohort: Cohort,
    store: FeatureStore,
    request: FitRequest,
    split: Split,
    counts: Mapping[str, Counts],
    mpps: tuple[float, ...],
    recipes: Mapping[str, Recipe],
    out: Path,
    tell: ProgressCallback,
    thumbnail_of: ThumbnailReader,
) -> tuple[Path, RunMetrics]:
    """Write all of a run into a draft of its folder, which is not in place yet.

    Parameters
    ----------
    recipes
        Of the embeddings of each encoder, by name.
    """
    encoders = tuple(recipes)
    names = (*split.train, *split.validation, *split.test)
    counts = harmonise_genes({name: counts[name] for name in names})
    panel, normalisation = choose_genes(store, request, split, counts)

    draft = start_run_folder(out)
    started = time.perf_counter()
    wanted = prototype_settings(request.settings, request.seed)
    loaded, cache = {}, row_cache(store, names, encoders, mpps)
    for name in names:
        tell(f"prototypes of {name}" if wanted else f"embeddings of {name}")
        loaded[name] = join_slides(
            [
                load_slide(
                    store,
                    name,
                    encoder,
                    mpps,
                    patient=cohort[name].patient,
                    prototypes=wanted,
                    tokens=request.method.tokens,
                    cache=cache,
                )
                for encoder in encoders
            ]
        )
    slides = with_targets(loaded, counts, panel.genes, normalisation)
    seconds = {"prototypes": time.perf_counter() - started if wanted else 0.0}

    train = [slides[name] for name in split.train]
    held_back = [slides[name] for name in split.validation]
    test = [slides[name] for name in split.test]
    # As the test is: folds of slides are like it only where its patients are in training too.
    by_slide = request.protocol.folds_by_slide and bool(split.shared_patients)
    validation = plan_validation(train, held_back, by_slide=by_slide)
    shares = {name: signal_share(counts[name], panel.genes, normalisation) for name in names}
    signal = {name: share for name, share in shares.items() if share is not None}
    started = time.perf_counter()
    head = fit_joined(request.method, encoders, train, validation, request.settings, request.seed, tell)
    seconds["fit"] = time.perf_counter() - started
    fitted = FittedRun(
        request, split, panel, normalisation, recipes, mpps, train, held_back, test, validation, head, signal
    )

    started = time.perf_counter()
    attended = {slide.name: predict_and_attend(head, slide) for slide in test}
    predicted = {name: values for name, (values, _) in attended.items()}
    seconds["predict"] = time.perf_counter() - started
    started = time.perf_counter()
    held_out = _held_out(head, held_back)
    used = [slide for slide in train if slide.usable.any()]
    tissue = fit_joined_domain(used, domain_folds(used, validation))
    distances = None if tissue is None else [tissue.held_out_distance(part) for part in held_out]
    spread = fit_spread(held_out, distances)
    if spread is not None:
        spread = spread.widened(fitted.calibration.widened)
    trust = fit_trust(held_out, signal, of_patients=fitted.calibration.of_patients)
    domain = None if tissue is None else tissue.domain
    stored = [store.slide(slide.name) for slide in used]
    trained = {encoder: training_slides(stored, encoder, mpps) for encoder in encoders}
    card = fitted.card(trained)
    with writing(out):
        try:
            sha256 = write_head(draft, head, card, spread, trust, domain)
        except SafetensorError as error:  # its word for a full disk
            raise OSError(first_line(error)) from error
    distance_of: dict[str, NDArray[np.float32]] = {}
    for slide in test:
        _, attention = attended[slide.name]
        about = {**_about(cohort, store, fitted, slide), HEAD_SHA256: sha256, CALIBRATION: fitted.calibration}
        if attention is not None:
            about[ATTENTION_OF] = encoders[attention.encoder]
        suitability = judge_slide(domain, trained, store.slide(slide.name), slide, mpps)
        if suitability.strangeness is not None:
            distance_of[slide.name] = suitability.strangeness.spots
        table = prediction_table(
            slide,
            predicted[slide.name],
            panel.genes,
            about,
            spread,
            trust,
            suitability,
            spatial_metadata_of(store.slide(slide.name), cohort[slide.name], encoders, mpps, thumbnail_of),
            card.panel.gene_ids,
            attention,
        )
        write_prediction(prediction_file(draft / PREDICTIONS, slide.name), table)
    seconds["calibrate"] = time.perf_counter() - started

    by_mean = by_ridge = None
    if request.baselines and test:
        by_mean, by_ridge = (
            predicted
            if (request.method, request.settings) == (method, settings)  # the head is that baseline
            else _predict(fit_joined(method, encoders, train, validation, settings, request.seed, tell), test)
            for method, settings in ((MEAN, MeanSettings()), (RIDGE, RidgeSettings()))
        )
    metrics = RunMetrics(
        protocol=fitted.protocol(),
        test=fitted.scores(predicted) if test else None,
        noise_ceiling=fitted.ceiling,
        prediction_intervals=fitted.intervals(spread, predicted, distance_of) if test and spread else None,
        gene_trust=None if trust is None else fitted.gene_trust(trust),
        baseline_mean=None if by_mean is None else fitted.scores(by_mean),
        baseline_ridge=None if by_ridge is None else fitted.scores(by_ridge),
        seconds=seconds,
    )
    with writing(out):
        if test:
            write_table(draft / GENES, fitted.genes(predicted, by_ridge, trust))
        write_json(draft / METRICS, metrics)
        facts = fit_facts(fitted, cohort, store, trust, domain, count_parameters(draft))
        write_card(draft, replace(card, weights_sha256=sha256), metrics, facts)
    return draft, metrics


#: Why a test slide has no scores.
NOT_SCORED = "none of its spots has both a valid embedding and a target"


def shared_patients_warning(patients: Sequence[str]) -> str:
    """The warning about patients who are in both training and test."""
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


def _about(cohort: Cohort, store: FeatureStore, fitted: FittedRun, slide: HeadSlide) -> dict[str, object]:
    """What a prediction's file says of where it is from."""
    image, stored = cohort[slide.name].image, store.slide(slide.name)
    return {
        "head": fitted.request.method.name,
        "encoder": fitted.request.encoder,
        "normalisation": fitted.normalisation,
        "image": None if image is None else str(absolute_place(image)),
        "source_mpp": stored.source_mpp,
        "enlarged": most_enlarged(stored, tuple(fitted.recipes), fitted.mpps),
    }


def _check_split(requested: Split, split: Split, why: dict[str, str]) -> None:
    for role, flag in (("train", "--train"), ("validation", "--val"), ("test", "--test")):
        wanted: Sequence[str] = getattr(requested, role)
        if wanted and not getattr(split, role):
            reason = f"slide {wanted[0]}: {why[wanted[0]].rstrip('.')}"
            raise SplitError(
                f"{none_of(len(wanted), 'slide')} of {flag} can be used ({reason}); name slides that are"
                " embedded and have counts."
            )
