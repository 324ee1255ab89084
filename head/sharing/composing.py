"""A run's card: written by the fit that knows all, or composed of what an earlier version recorded."""

from __future__ import annotations

import csv
import json
import logging
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmap_st.data import NORMALISATIONS, Cohort
from mmap_st.errors import HeadError, first_line, printable
from mmap_st.extract.store import FeatureStore
from mmap_st.files import sha256_of_json, write_text
from mmap_st.head.runs import (
    GENES,
    METRICS,
    HeadCard,
    RunMetrics,
    nominal_pitch,
    read_card,
    read_metrics,
)
from mmap_st.head.scoring import (
    PER_SLIDE,
    GeneTrust,
    Scores,
    from_json,
    interval_over_patients,
    json_text,
    read_json,
)
from mmap_st.head.sharing.card_files import CARD_FORMAT, CARD_JSON, README, sealed
from mmap_st.head.sharing.encoder_facts import encoder_facts
from mmap_st.head.sharing.markdown import markdown_of
from mmap_st.head.sharing.model_card import (
    CARD_VERSION,
    DataFacts,
    GeneFacts,
    ModelCard,
    PanelFacts,
    PartFacts,
    PatientScores,
    ProtocolFacts,
    TrustFacts,
)

if TYPE_CHECKING:
    from mmap_st.head.runs import FittedRun

_LOG = logging.getLogger(__name__)

#: Trusted genes that a card names.
_BEST_GENES = 10
#: Key of card.json with the sha256 of the others.
_SHA256 = "sha256"
_COMPUTES = ("torch", "numpy")


@dataclass(frozen=True)
class FitFacts:
    """What a card says that only the fit knows.

    Attributes
    ----------
    made, versions
        The day, and versions of what computed.
    patients, spots
        Patient, and number of usable spots, of each slide.
    readers
        Of the slides, each once.
    precisions
        In which each encoder computed.
    best
        The trusted genes that are predicted best.
    parameters, knows_tissue
        See `ModelCard`.
    """

    made: str
    versions: Mapping[str, str]
    patients: Mapping[str, str | None]
    spots: Mapping[str, int]
    readers: tuple[str, ...]
    precisions: Mapping[str, tuple[str, ...]]
    best: tuple[GeneFacts, ...]
    parameters: int
    knows_tissue: bool


def fit_facts(
    fitted: FittedRun,
    cohort: Cohort,
    store: FeatureStore,
    trust: GeneTrust | None,
    domain: object | None,
    parameters: int,
) -> FitFacts:
    """What a fit knows of itself that it records nowhere else.

    Parameters
    ----------
    domain
        What the head knows of where the training tissue lies; None: nothing.
    parameters
        How many numbers it consists of.
    """
    slides = (*fitted.train, *fitted.held_back, *fitted.test)
    readers = {slide.slide: slide.reader for slide in cohort.slides}
    precisions = {
        encoder: _each_once(
            str(stored[mpp].recipe.get("precision"))
            for slide in slides
            for stored in [store.slide(slide.name).complete(encoder)]
            for mpp in fitted.mpps
        )
        for encoder in fitted.recipes
    }
    return FitFacts(
        made=datetime.now(UTC).date().isoformat(),
        versions={"python": platform.python_version(), **{name: version(name) for name in _COMPUTES}},
        patients={slide.name: slide.patient for slide in slides},
        spots={slide.name: int(slide.usable.sum()) for slide in slides},
        readers=_each_once(readers[slide.name] for slide in slides),
        precisions=precisions,
        best=() if trust is None else _best_of(fitted.panel.genes, trust),
        parameters=parameters,
        knows_tissue=domain is not None,
    )


def _each_once(names: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name))


def _best_of(genes: Sequence[str], trust: GeneTrust) -> tuple[GeneFacts, ...]:
    order = [int(i) for i in np.argsort(-trust.pcc, kind="stable") if trust.trusted[i]]
    return tuple(
        GeneFacts(genes[i], float(trust.pcc[i]), float(trust.low[i]), float(trust.high[i]))
        for i in order[:_BEST_GENES]
    )


def write_card(folder: Path, head: HeadCard, metrics: RunMetrics, facts: FitFacts) -> None:
    """Write README.md and card.json of a trained head beside its other files."""
    for name, content in card_files(compose(head, metrics, facts)).items():
        write_text(folder / name, content.decode())


def card_files(card: ModelCard) -> dict[str, bytes]:
    """The contents of README.md and card.json by name."""
    content = card.as_json()
    text = json_text({**content, _SHA256: sha256_of_json(_as_read(content))})
    return {README: sealed(markdown_of(card)).encode(), CARD_JSON: text.encode()}


def _as_read(content: object) -> object:
    """Plain content as it comes out of a file again."""
    return json.loads(json.dumps(content))


def card_of_run(folder: Path) -> ModelCard:
    """The card of a run: that which was written with it, else composed of its other files.

    Raises
    ------
    HeadError
        If `folder` is not a run, or is damaged.
    """
    head = read_card(folder)
    try:
        card = _written(folder, head)
    except HeadError as error:
        _LOG.warning("%s; the card is made of the run's other files.", printable(str(error).rstrip(".")))
        card = None
    if card is not None:
        return card
    metrics = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else None
    return compose(head, metrics, None, _best_in(folder / GENES))


def _written(folder: Path, head: HeadCard) -> ModelCard | None:
    """The card of card.json; None where there is none, or it is not ours."""
    path = folder / CARD_JSON
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("format") != CARD_FORMAT or content.get("format_version") != CARD_VERSION:
        return None
    written = content.pop(_SHA256, None)
    if written != sha256_of_json(content):
        raise HeadError(f"{path} is not the one that was written.")
    try:
        card = from_json(ModelCard, content)
    except TypeError as error:
        raise HeadError(f"{path} is damaged ({first_line(error)}).") from error
    if card.head_sha256 != head.weights_sha256:
        raise HeadError(f"{path} is of another head.")
    return card


def _best_in(path: Path) -> tuple[GeneFacts, ...]:
    """The trusted genes that are predicted best, by genes.csv; none where it does not say."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if float(row.get("trusted") or 0)]
        genes = [
            GeneFacts(row["gene"], *(float(row[f"cv_pcc{end}"] or "nan") for end in ("", "_low", "_high")))
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return ()
    return tuple(sorted(genes, key=lambda gene: -gene.pcc)[:_BEST_GENES])


def compose(
    head: HeadCard,
    metrics: RunMetrics | None,
    facts: FitFacts | None = None,
    best: tuple[GeneFacts, ...] = (),
) -> ModelCard:
    """Make a card of what is recorded, and no more.

    Parameters
    ----------
    metrics
        None: they are not there.
    facts
        What the fit knows; None: of an earlier version's run, which did not record it.
    best
        The best of the trusted genes, where `facts` does not say.
    """
    scores = {} if metrics is None else metrics.predictors
    patients = None if facts is None else _by_patient(scores.get("head"), facts.patients)
    trust = None if metrics is None else metrics.gene_trust
    protocol = None if metrics is None else metrics.protocol
    normalisation = head.normalisation.targets
    return ModelCard(
        made=None if facts is None else facts.made,
        package_version=head.package_version,
        versions={} if facts is None else facts.versions,
        head=head.head,
        head_code_sha256=head.head_code_sha256,
        head_sha256=head.weights_sha256,
        parameters=None if facts is None else facts.parameters,
        settings=head.settings,
        chosen=head.chosen,
        seed=head.seed,
        panel=PanelFacts(
            len(head.panel.genes),
            head.panel.how,
            head.panel.slides,
            normalisation,
            NORMALISATIONS[normalisation].units,
            NORMALISATIONS[normalisation].smoothed,
        ),
        data=_data(head, facts),
        protocol=ProtocolFacts(None, None)
        if protocol is None
        else ProtocolFacts(
            protocol.name,
            protocol.validation,
            protocol.shared_patients,
            protocol.shared_patients_validation,
        ),
        encoders=tuple(
            encoder_facts(
                alone.encoder,
                head.magnifications,
                None if facts is None else facts.precisions.get(alone.encoder_name),
                alone.tokens,
            )
            for alone in head.by_encoder
        ),
        scores=scores,
        patients=patients,
        intervals=None if facts is None or "head" not in scores else _intervals(scores["head"], facts),
        noise_ceiling=None if metrics is None else metrics.noise_ceiling,
        prediction_intervals=None if metrics is None else metrics.prediction_intervals,
        calibration=head.calibration,
        trust=None
        if trust is None
        else TrustFacts(**vars(trust), best=best if facts is None else facts.best),
        knows_tissue=None if facts is None else facts.knows_tissue,
    )


def _data(head: HeadCard, facts: FitFacts | None) -> DataFacts:
    scales = [alone.training_slides for alone in head.by_encoder if alone.training_slides is not None]
    enlarged: dict[str, float] = {}
    for scale in scales:
        for mpp, times in scale.enlarged.items():
            enlarged[mpp] = max(times, enlarged.get(mpp, times))
    return DataFacts(
        train=_part(head.slides.train, facts),
        val=_part(head.slides.val, facts),
        test=_part(head.slides.test, facts),
        readers=None if facts is None else facts.readers,
        pitch_um=next((nominal_pitch(one.pitch_um) for one in scales if one.pitch_um is not None), None),
        enlarged=enlarged,
    )


def _part(slides: tuple[str, ...], facts: FitFacts | None) -> PartFacts:
    if facts is None:
        return PartFacts(slides)
    patients = [facts.patients[name] for name in slides]
    return PartFacts(
        slides,
        _each_once(patients),
        sum(patient is None for patient in patients),
        sum(facts.spots[name] for name in slides),
    )


def _by_patient(scores: Scores | None, patients: Mapping[str, str | None]) -> dict[str, PatientScores] | None:
    """Scores by patient; None where nothing was tested, or a test patient is not known."""
    if scores is None or not all(patients[name] for name in scores.slides):
        return None
    found = {}
    for patient in dict.fromkeys(str(patients[name]) for name in scores.slides):
        own = [of for name, of in scores.slides.items() if patients[name] == patient]
        means = {key: sum(getattr(of, key) for of in own) / len(own) for key in ("pcc", "mse", "mae")}
        found[patient] = PatientScores(len(own), **means)
    return found


def _intervals(scores: Scores, facts: FitFacts) -> dict[str, tuple[float, float] | None]:
    whose = [facts.patients[name] for name in scores.slides]
    return {
        metric: interval_over_patients([scores.of_slide(name, metric) for name in scores.slides], whose)
        for metric in PER_SLIDE
    }
