"""card.json: what a trained head is, what it was trained and tested on, and what it is valid for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmap_st.head.runs import TrustedGenes
from mmap_st.head.scoring import (
    OMITTED,
    Calibration,
    Interval,
    NoiseCeiling,
    PredictionIntervals,
    Scores,
    as_json,
)
from mmap_st.head.sharing.card_files import CARD_FORMAT

CARD_VERSION = 1


@dataclass(frozen=True)
class PanelFacts:
    """What a head predicts.

    Attributes
    ----------
    genes
        How many.
    how, slides
        How they were chosen, and on which slides.
    normalisation, units
        Of the predictions: its name, and what the values are in words.
    smoothed
        Whether measured values were averaged with those of neighbouring spots.
    """

    genes: int
    how: str
    slides: tuple[str, ...]
    normalisation: str
    units: str
    smoothed: bool = False


@dataclass(frozen=True)
class PartFacts:
    """One part of a split.

    Attributes
    ----------
    slides
        Their names.
    patients
        Whose they are, each once; None where that was not recorded.
    without_patient
        How many slides are of a patient whom the cohort does not name.
    spots
        Spots with an embedding and a measured value; None where that was not recorded.
    """

    slides: tuple[str, ...]
    patients: tuple[str, ...] | None = None
    without_patient: int = field(default=0, metadata=OMITTED)
    spots: int | None = None


@dataclass(frozen=True)
class DataFacts:
    """What a head was trained and tested on.

    Attributes
    ----------
    train, val, test
        The parts of the split.
    readers
        Which readers understood the slides' files: they stand for the technology. None: not recorded.
    pitch_um
        Distance between neighbouring spots of training, a mean over slides, or that at which spots like them
        are printed, see `nominal_pitch`; None where it is not known.
    enlarged
        How many times training windows were enlarged from the slides' pixels at most, by um/px.
    """

    train: PartFacts
    val: PartFacts
    test: PartFacts
    readers: tuple[str, ...] | None = None
    pitch_um: float | None = None
    enlarged: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ProtocolFacts:
    """How a head was tested.

    Attributes
    ----------
    name
        Of the evaluation protocol; None where nothing was scored or recorded.
    validation
        How choices were made within training; None where that is not recorded.
    shared_patients, shared_patients_validation
        Patients on both sides of training and test, and of training and validation.
    """

    name: str | None
    validation: str | None
    shared_patients: tuple[str, ...] = ()
    shared_patients_validation: tuple[str, ...] = ()


@dataclass(frozen=True)
class PatientScores:
    """Unweighted means over the test slides of one patient."""

    slides: int
    pcc: float
    mse: float
    mae: float


@dataclass(frozen=True)
class GeneFacts:
    """A gene, and its correlation on spots that fits did not see, with its 95% interval."""

    gene: str
    pcc: float
    low: float
    high: float


@dataclass(frozen=True)
class TrustFacts(TrustedGenes):
    """How many genes are predicted better than by chance.

    `best` are those of the highest correlation among the trusted ones.
    """

    best: tuple[GeneFacts, ...] = ()


@dataclass(frozen=True)
class EncoderFacts:
    """What made the embeddings that a head takes.

    Attributes
    ----------
    name
        Of the encoder.
    weights_sha256
        Of its weights; None where that is not known, as for embeddings that were imported.
    mpps, input_px
        Micrometres per pixel and side in pixels of the windows; no `input_px`: not known.
    own_input_px
        Side of the windows that the encoder of this name takes by itself, where the catalogue says it.
    tokens
        Side of the grids of tokens that the head needs; 0: none.
    precisions
        In which it computed; None where that was not recorded.
    imported
        Whether the embeddings were made elsewhere: name and mpp are then what a user says.
    random
        Whether its weights are random.
    licence, commercial, gated, hub, citation
        What the catalogue of encoders says of the weights that are published under this name; None: the
        encoder is not in the catalogue, or it does not say.
    """

    name: str
    weights_sha256: str | None
    mpps: tuple[float, ...]
    input_px: int | None = None
    own_input_px: int | None = None
    tokens: int = field(default=0, metadata=OMITTED)
    precisions: tuple[str, ...] | None = None
    imported: bool = False
    random: bool = False
    licence: str | None = None
    commercial: bool | None = None
    gated: bool | None = None
    hub: str | None = None
    citation: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Contents of card.json: all that is recorded of a head, and nothing of single spots.

    Attributes
    ----------
    format, format_version
        Of the file.
    made
        Day on which the head was trained, as in 2025-12-31; None where it was not recorded.
    package_version, versions
        Of this package, and of what else computed.
    head, head_code_sha256, head_sha256
        Name of the head, the hash of its code where users brought it, and that of its weights, which ties the
        card to them.
    parameters
        How many numbers it consists of; None where that was not recorded.
    settings, chosen, seed
        As given, and what was chosen within training.
    panel, data, protocol, encoders
        What it predicts, from what, and how it was tested.
    scores
        On the test slides, by predictor: ``head``, ``ridge``, ``mean``. Empty: nothing was tested.
    patients, intervals
        The head's scores by test patient; 95% intervals over these patients, None with fewer than 3.
    noise_ceiling, prediction_intervals, calibration, trust
        As in metrics.json and head.json; None where they are not there.
    knows_tissue
        Whether the head tells how far a slide lies from its training tissue; None where that is not recorded.
    """

    format: str = CARD_FORMAT
    format_version: int = CARD_VERSION
    made: str | None = None
    package_version: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    head: str
    head_code_sha256: str = field(default="", metadata=OMITTED)
    head_sha256: str = ""
    parameters: int | None = None
    settings: Mapping[str, object]
    chosen: Mapping[str, object]
    seed: int
    panel: PanelFacts
    data: DataFacts
    protocol: ProtocolFacts
    encoders: tuple[EncoderFacts, ...]
    scores: Mapping[str, Scores] = field(default_factory=dict)
    patients: Mapping[str, PatientScores] | None = None
    intervals: Mapping[str, Interval | None] | None = None
    noise_ceiling: NoiseCeiling | None = None
    prediction_intervals: PredictionIntervals | None = None
    calibration: Calibration | None = None
    trust: TrustFacts | None = None
    knows_tissue: bool | None = None

    def as_json(self) -> dict[str, object]:
        """The card as card.json has it, with plain values."""
        content: dict[str, object] = as_json(self)
        return content
