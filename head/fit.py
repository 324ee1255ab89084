"""`mmap fit-head`: train one head on a split of a cohort, predict and score its test slides."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmap_st.data.cohort import Cohort
from mmap_st.data.harmonise import harmonise_genes
from mmap_st.data.normalise import AS_GIVEN, normalisation_of
from mmap_st.data.panel import DEFAULT_PANEL, INTERSECTION, Panel, choose_panel
from mmap_st.data.splits import Split, resolve_split
from mmap_st.errors import HeadError, NormalisationError, SplitError
from mmap_st.extract.recipe import Recipe
from mmap_st.extract.store import (
    FeatureStore,
    check_encoder,
    check_same_recipe,
    common_magnifications,
)
from mmap_st.head.base import FittedHead, HeadMethod, Validation, plan_validation, settings_values
from mmap_st.head.dataset import load_slide, measure, prototype_settings, with_targets
from mmap_st.head.mean import MEAN, MeanSettings
from mmap_st.head.metrics import most_variable, pooled_errors, summarise
from mmap_st.head.predictions import prediction_file, write_prediction
from mmap_st.head.protocols import DEFAULT, EvaluationProtocol
from mmap_st.head.ridge import RIDGE, RidgeSettings
from mmap_st.head.run_folder import (
    METRICS,
    PREDICTIONS,
    begin_run_folder,
    check_run_folder,
    finish_run_folder,
    write_head,
    write_json,
)
from mmap_st.head.slides import HeadSlide

Tell = Callable[[str], None]


@dataclass(frozen=True)
class FitRequest:
    """What to fit, and on what.

    Attributes
    ----------
    encoder
        Name of an encoder in the store.
    method, settings, seed
        The head.
    genes
        Panel, see `mmap_st.data.panel.choose_panel`.
    train, validation, test
        WHERE of each role, see `mmap_st.data.splits.resolve_split`.
    mpps
        Magnifications; None: all that are complete on every slide used.
    gene_set
        Genes that a panel is chosen from, see `mmap_st.data.panel.choose_panel`.
    protocol
        How it is evaluated.
    """

    encoder: str
    method: HeadMethod
    settings: Any
    genes: str = DEFAULT_PANEL
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    mpps: tuple[float, ...] | None = None
    seed: int = 0
    gene_set: str = INTERSECTION
    protocol: EvaluationProtocol = DEFAULT


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
    asked = resolve_split(cohort, request.train, request.validation, request.test or request.protocol.test)
    measured = measure(cohort, store, asked, request.encoder, request.mpps, tell)
    if not measured.counts and not measured.failed:
        check_encoder(store, request.encoder)
    split = measured.usable(cohort, asked)
    _check_split(asked, split, {**measured.passed_over, **measured.failed})
    report = FitReport(passed_over=measured.passed_over, failed=measured.failed)
    if split.shared_patients:
        report.warnings.append(
            f"patients {', '.join(split.shared_patients)} are in training and in test: the scores say"
            " nothing about new patients"
        )
    names = (*split.train, *split.validation, *split.test)
    stored = [store.slide(name) for name in names]
    mpps = common_magnifications(stored, request.encoder, request.mpps)
    recipe = check_same_recipe(stored, request.encoder, mpps)
    counts = harmonise_genes({name: measured.counts[name] for name in names})
    normalisation = _normalisation(request.protocol, normalisation_of(counts))
    training = {name: counts[name] for name in split.train}
    places = {name: store.slide(name).spot_xy() for name in split.train}
    panel = choose_panel(request.genes, training, normalisation, request.gene_set, places)

    draft = begin_run_folder(out)
    started = time.perf_counter()
    wanted = prototype_settings(request.settings, request.seed)
    loaded = {}
    for name in names:
        tell(f"prototypes of {name}" if wanted else f"embeddings of {name}")
        loaded[name] = load_slide(
            store, name, request.encoder, mpps, patient=cohort[name].patient, prototypes=wanted
        )
    slides = with_targets(loaded, counts, panel.genes, normalisation)
    seconds = {"prototypes": time.perf_counter() - started if wanted else 0.0}

    train = [slides[name] for name in split.train]
    held_back = [slides[name] for name in split.validation]
    validation = plan_validation(train, held_back, by_slide=request.protocol.folds_by_slide)
    started = time.perf_counter()
    head = request.method.fit(train, validation, request.settings, request.seed, tell)
    seconds["fit"] = time.perf_counter() - started

    started = time.perf_counter()
    test = [slides[name] for name in split.test]
    about = {
        "head": request.method.name,
        "encoder": request.encoder,
        "normalisation": normalisation,
    }
    for slide in test:
        row, in_store = cohort[slide.name], store.slide(slide.name)
        image = None if row.image is None else str(row.image.resolve())
        write_prediction(
            prediction_file(draft / PREDICTIONS, slide.name),
            slide,
            head.predict(slide),
            panel.genes,
            {**about, "image": image, "source_mpp": in_store.source_mpp},
        )
    seconds["predict"] = time.perf_counter() - started

    report.metrics = _metrics(
        head, train, held_back, test, validation, split, panel, normalisation, request, seconds, tell
    )
    write_json(draft / METRICS, report.metrics)
    write_head(draft, head, _card(head, train[0], recipe, mpps, split, panel, normalisation, request))
    finish_run_folder(draft, out)
    return report


def _check_split(asked: Split, split: Split, why: dict[str, str]) -> None:
    for role, flag in (("train", "--train"), ("validation", "--val"), ("test", "--test")):
        wanted: Sequence[str] = getattr(asked, role)
        if wanted and not getattr(split, role):
            name = wanted[0]
            raise SplitError(
                f"none of the {len(wanted)} slides of {flag} can be used; slide {name}: {why[name]}"
            )


def _metrics(
    head: FittedHead,
    train: Sequence[HeadSlide],
    held_back: Sequence[HeadSlide],
    test: Sequence[HeadSlide],
    validation: Validation,
    split: Split,
    panel: Panel,
    normalisation: str,
    request: FitRequest,
    seconds: dict[str, float],
    tell: Tell,
) -> dict[str, Any]:
    """Contents of metrics.json: the head, beside the training mean and ridge on the same embeddings."""
    used = (*train, *held_back, *test)
    undefined = {s.name: int((s.valid & ~s.usable).sum()) for s in used}
    invalid = {s.name: int((~s.valid).sum()) for s in used}
    lacking = {s.name: s.genes_lacking for s in used}
    protocol = {
        "name": request.protocol.name,
        "validation": validation.rule,
        "train": list(split.train),
        "val": list(split.validation),
        "test": list(split.test),
        "shared_patients": list(split.shared_patients),
        "panel": panel.how,
        "genes": len(panel.genes),
        "normalisation": normalisation,
        "chosen": head.chosen,
        "spots_without_target": {name: n for name, n in undefined.items() if n},
        "invalid_spots": {name: n for name, n in invalid.items() if n},
        "genes_lacking": {name: n for name, n in lacking.items() if n},
    }
    result: dict[str, Any] = {"protocol": protocol}
    hvg = most_variable([s.target[s.usable] for s in train if s.target is not None])
    heads: dict[str, FittedHead] = {"test": head}
    if test:
        heads["baseline_mean"] = MEAN.fit(train, validation, MeanSettings(), request.seed, tell)
        heads["baseline_ridge"] = RIDGE.fit(train, validation, RidgeSettings(), request.seed, tell)
    for key, fitted in heads.items():
        result[key] = _score(fitted, test, hvg, request.protocol) if test else None
    return {**result, "seconds": seconds}


def _normalisation(protocol: EvaluationProtocol, suits: str) -> str:
    """The protocol's own, or the one that suits the tables."""
    if protocol.normalisation is None:
        return suits
    if suits == AS_GIVEN:
        raise NormalisationError(
            f"--protocol {protocol.name} needs counts, and the tables hold log-normalised values."
        )
    return protocol.normalisation


def _score(
    head: FittedHead, test: Sequence[HeadSlide], hvg: Sequence[int], protocol: EvaluationProtocol
) -> dict[str, Any]:
    scored = [slide for slide in test if slide.usable.any()]
    if not scored:
        raise HeadError("no test spot has both a valid embedding and a target; check the counts.")
    predicted = {s.name: head.predict(s) for s in scored}
    measured = {s.name: s.target for s in scored if s.target is not None}
    summary = summarise(predicted, measured, hvg)
    return {**summary, **pooled_errors(predicted, measured)} if protocol.released_errors else summary


def _card(
    head: FittedHead,
    example: HeadSlide,
    recipe: Recipe,
    mpps: Sequence[float],
    split: Split,
    panel: Panel,
    normalisation: str,
    request: FitRequest,
) -> dict[str, Any]:
    """Contents of head.json."""
    return {
        "head": request.method.name,
        "settings": settings_values(request.settings),
        "chosen": head.chosen,
        "seed": request.seed,
        "shape": {
            "magnifications": len(mpps),
            "width": example.embedding.shape[2],
            "genes": len(panel.genes),
        },
        "panel": {
            "genes": list(panel.genes),
            "gene_ids": None if panel.gene_ids is None else list(panel.gene_ids),
            "how": panel.how,
            "slides": list(panel.slides),
        },
        "normalisation": {
            "targets": normalisation,
            "embeddings": "standardised within each slide",
        },
        "encoder": recipe,
        "magnifications": list(mpps),
        "slides": {"train": list(split.train), "val": list(split.validation), "test": list(split.test)},
    }
