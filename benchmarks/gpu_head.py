"""How fast a head is fitted on a card and on the CPU beside it, and whether both say the same."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from gpu_record import Figures, Record
from numpy.typing import NDArray

from mmap_st.data.targets import Targets
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import plan_validation
from mmap_st.head.mmap.fitting import MmapFit
from mmap_st.head.mmap.settings import MmapSettings
from mmap_st.head.scoring.metrics import slide_metrics
from mmap_st.prototypes.candidates import (
    CandidateSettings,
    build_candidates,
    select_prototypes,
    selected_count,
)

MAGNIFICATIONS = 3
#: Smooth fields in space from which both embeddings and expression are made.
FIELDS = 12


@dataclass(frozen=True)
class Cohort:
    """Slides that are made: how many train, of how many spots; one more validates, one more tests."""

    slides: int
    spots: int
    width: int = 1024
    genes: int = 785
    epochs: int = 6

    def __str__(self) -> str:
        return f"{self.slides * self.spots} spots"


ON_CARD = (Cohort(4, 900), Cohort(10, 1000))
REHEARSAL = (Cohort(2, 100, width=64, genes=40, epochs=2), Cohort(3, 150, width=64, genes=40, epochs=2))


def run_head(record: Record, device: str) -> None:
    """Fit the `mmap` head on the device and on the CPU, on cohorts of two sizes."""
    cohorts = ON_CARD if device == "cuda" else REHEARSAL
    # What a device does once for all is not of a fit.
    fit(make_slides(REHEARSAL[0]), REHEARSAL[0], device)
    for cohort in cohorts:
        slides = make_slides(cohort)
        predicted: dict[str, NDArray[np.float32]] = {}
        for where in dict.fromkeys((device, "cpu")):
            measured = partial(_measured, slides, cohort, where, predicted)
            record.measure(f"mmap, {cohort}, {where}", measured, needs_s=8.0)
        if len(predicted) > 1:
            record.keep(f"mmap, {cohort}, {device} against cpu", alike(predicted[device], predicted["cpu"]))


def _measured(
    slides: list[HeadSlide], cohort: Cohort, device: str, predicted: dict[str, NDArray[np.float32]]
) -> Figures:
    figures, predicted[device] = fit(slides, cohort, device)
    return figures


def make_slides(cohort: Cohort) -> list[HeadSlide]:
    """Slides of a patient each: those that train, one that validates, one that tests."""
    rng = np.random.default_rng(0)
    loading = rng.normal(size=(MAGNIFICATIONS, FIELDS, cohort.width)).astype(np.float32)
    effect = rng.normal(0, 0.3, (FIELDS, cohort.genes)).astype(np.float32)
    return [_slide(number, cohort, loading, effect, rng) for number in range(cohort.slides + 2)]


def fit(slides: list[HeadSlide], cohort: Cohort, device: str) -> tuple[Figures, NDArray[np.float32]]:
    """Fit as `mmap fit-head` does; seconds of its steps, and predictions of the slide that tests."""
    *train, validation, test = slides
    # Without dropout, which each device draws in its own way, both train the same network.
    settings = MmapSettings(device=device, epochs=cohort.epochs, members=1, dropout=0.0, input_dropout=0.0)
    marks = [time.perf_counter()]

    def lap() -> float:
        marks.append(time.perf_counter())
        return marks[-1] - marks[-2]

    steps = MmapFit(train, plan_validation(train, [validation]), settings, seed=0)
    prepared = lap()
    steps.choose_strength()
    strength = lap()
    steps.try_epochs(0)
    trial = lap()
    head = steps.finish()
    final = lap()
    fitted = marks[-1] - marks[0]
    predicted = head.predict(test)
    predicting = lap()
    measured = test.targets.dense()
    return {
        "fit_s": fitted,
        "prepare_s": prepared,
        "strength_s": strength,
        "epoch_s": trial / cohort.epochs,
        "final_s": final,
        "predict_s": predicting,
        "epochs": head.chosen["epochs"],
        "last_training_loss": head.history[-1]["training_loss"],
        "test_pcc": slide_metrics(predicted, measured).pcc,
    }, predicted


def alike(a: NDArray[np.float32], b: NDArray[np.float32]) -> Figures:
    """How near two predictions (n, G) are."""
    around = b - b.mean(axis=0)
    return {
        "max_abs": float(np.abs(a - b).max()),
        "relative": float(np.linalg.norm(a - b) / np.linalg.norm(around)),
        "correlation": float(np.corrcoef((a - b.mean(axis=0)).ravel(), around.ravel())[0, 1]),
    }


def _slide(
    number: int,
    cohort: Cohort,
    loading: NDArray[np.float32],
    effect: NDArray[np.float32],
    rng: np.random.Generator,
) -> HeadSlide:
    n, side = cohort.spots, int(np.ceil(np.sqrt(cohort.spots)))
    y, x = np.divmod(np.arange(n), side)
    xy = np.stack([x, y], 1) * 100.0
    wave = rng.normal(0, 0.3, (FIELDS, 2))
    fields = np.sin(xy / 100.0 @ wave.T + rng.uniform(0, 6, FIELDS)).astype(np.float32)
    noise = rng.standard_normal((n, MAGNIFICATIONS, cohort.width), np.float32)
    embedding = np.stack([fields @ own for own in loading], axis=1) + 2 * noise
    own = rng.standard_normal((n, cohort.genes), np.float32)
    expression = np.maximum(fields, 0) @ effect + 0.3 * own + 3
    slide = HeadSlide(
        name=f"S{number}",
        patient=f"P{number}",
        ids=tuple(map(str, range(n))),
        xy=xy,
        embedding=embedding,
        valid=np.ones(n, np.bool_),
        target=Targets.of_dense(expression),
    )
    candidates = build_candidates(embedding, slide.valid, CandidateSettings())
    selected = select_prototypes(embedding, candidates.centre, selected_count(len(candidates.size)))
    return replace(slide, centre=candidates.centre, selected=selected)
