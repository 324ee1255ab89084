"""What a card says, in sentences and tables of plain text: shown on a terminal, and written as Markdown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping

from mmap_st.data.readers import READERS
from mmap_st.errors import agreeing, counted, printable
from mmap_st.head.sharing.model_card import EncoderFacts, ModelCard, PartFacts
from mmap_st.head.sharing.wording import (
    CardTable,
    Section,
    ends_of,
    names_of,
    number,
    short,
    short_sentence,
    some_rows,
)

_PREDICTORS = {"head": "this head", "ridge": "ridge on the same embeddings", "mean": "training mean"}
# What a reader needs installed is nothing to a card.
_EXTRA = re.compile(r" \([^)]*\bextra\b[^)]*\)")
# More settings than these are left to card.json.
_MOST_SETTINGS = 20
# Of a setting that has a number for each of many things, the range is shown.
_MOST_VALUES = 4
# A longer name of an encoder is not written into a command.
_LONGEST_NAME = 160


def title_of(card: ModelCard) -> str:
    """What a head is, in a few words."""
    encoders = ", ".join(short(encoder.name) for encoder in card.encoders)
    return f"{_name_of(card)} on {encoders}: expression of {counted(card.panel.genes, 'gene')} from H&E"


def _name_of(card: ModelCard) -> str:
    """The head's name; of ``FILE.py:NAME`` without the folder, which is of one machine."""
    return short(card.head.replace("\\", "/").rpartition("/")[2] if ".py:" in card.head else card.head)


def card_sections(card: ModelCard) -> list[Section]:
    """The parts of a card, in their order."""
    return [
        Section("Head", tuple(_head(card))),
        Section("What it predicts", tuple(_panel(card))),
        Section("Encoder" if len(card.encoders) == 1 else "Encoders", tuple(_encoders(card))),
        Section("Data", tuple(_data(card))),
        Section("Protocol", tuple(_protocol(card))),
        Section("Scores", tuple(_scores(card)), tuple(_score_tables(card))),
        Section("Genes to trust", tuple(_trust(card)), tuple(_gene_tables(card))),
        Section("Prediction intervals", tuple(_intervals(card))),
        Section("Intended use and limits", tuple(_limits(card))),
        Section("How to predict with it", commands=tuple(_commands(card))),
    ]


def _head(card: ModelCard) -> Iterator[str]:
    yield f"Head: {_name_of(card)}, seed {card.seed}."
    if settings := _settings({key: value for key, value in card.settings.items() if value is not None}):
        yield f"Settings: {settings}."
    if card.head_code_sha256:
        yield (
            "It is code of a file of its authors, which does not come with it: predictions need that file"
            f" (--head-code), of sha256 {card.head_code_sha256}."
        )
    if chosen := _settings(card.chosen):
        yield f"Chosen within training: {chosen}."
    if card.parameters is not None:
        yield f"Size: {card.parameters:,} numbers."
    made = f" on {card.made}" if card.made else ""
    with_ = ", ".join(f"{short(name)} {short(number)}" for name, number in card.versions.items())
    version = card.package_version or "of an unknown version"
    yield f"Trained{made} by mmap-st {version}{f' with {with_}' if with_ else ''}."
    if card.head_sha256:
        yield f"sha256 of its weights: {card.head_sha256}."


def _settings(values: Mapping[str, object]) -> str:
    """Settings in a line; nested and long ones are in card.json."""
    shown = [f"{short(str(key))}={short(_value(value))}" for key, value in values.items()]
    more = len(shown) - _MOST_SETTINGS
    return ", ".join(shown[:_MOST_SETTINGS]) + (f" and {more} more" if more > 0 else "")


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return f"({_settings(value)})" if value else "none"
    if isinstance(value, list | tuple) and len(value) > _MOST_VALUES:
        numbers = [float(one) for one in value if isinstance(one, int | float) and not isinstance(one, bool)]
        if len(numbers) == len(value):
            return f"{min(numbers):g} to {max(numbers):g} ({len(numbers)} values)"
    return "none" if value is None else str(value)


def _panel(card: ModelCard) -> Iterator[str]:
    panel = card.panel
    on = f", chosen on {names_of(panel.slides, 'slide')}" if panel.slides else ""
    yield f"{counted(panel.genes, 'gene')} ({short(panel.how)}{on}); their names are in head.json."
    yield f"Values: {panel.units} ({panel.normalisation})."


def _encoders(card: ModelCard) -> Iterator[str]:
    for encoder in card.encoders:
        name = short(encoder.name)
        at = ", ".join(f"{mpp:g}" for mpp in encoder.mpps)
        size = "" if encoder.input_px is None else f", windows of {encoder.input_px} px"
        by = f", computed in {', '.join(map(short, encoder.precisions))}" if encoder.precisions else ""
        yield f"{name} at {at} um/px{size}{by}."
        yield _weights(encoder)
        yield _licence(encoder)


def _weights(encoder: EncoderFacts) -> str:
    name = short(encoder.name)
    if encoder.imported:
        return f"Embeddings were made elsewhere and imported under the name {name}: weights are not known."
    if encoder.random:
        return f"The weights of {name} were random: predictions mean nothing."
    if encoder.weights_sha256 is None:
        return f"The weights of {name} are not known."
    where = f"; weights of this name are at {encoder.hub} on the Hugging Face hub" if encoder.hub else ""
    return f"sha256 of the weights of {name}: {short(encoder.weights_sha256)}{where}."


def _licence(encoder: EncoderFacts) -> str:
    name = short(encoder.name)
    if encoder.random:
        return "Random weights have no licence."
    if encoder.licence is None:
        return f"The licence of {name} is not known here: ask those who made it."
    commercial = {
        True: "commercial use is allowed",
        False: "non-commercial use only",
        None: "whether commercial use is allowed is not stated",
    }[encoder.commercial]
    gated = "; the hub asks for permission before it gives them" if encoder.gated else ""
    return (
        f"Weights published as {name} are under: {encoder.licence} ({commercial}){gated}. The licence of this"
        " head is its owner's choice, but embeddings that it takes come from an encoder under these terms."
    )


def _data(card: ModelCard) -> Iterator[str]:
    data = card.data
    yield f"Trained on {_part(data.train)}."
    yield f"Validated on {_part(data.val)}." if data.val.slides else "No slides were set aside to validate."
    yield f"Tested on {_part(data.test)}." if data.test.slides else "No slides were set aside to test."
    if data.readers is None:
        yield "The technology was not recorded."
    else:
        yield f"Read as: {'; '.join(map(_technology, data.readers)) or 'not known'}."
    if data.pitch_um is None:
        yield "The distance between spots is not known."
    else:
        yield f"Spots of training lie {data.pitch_um:.0f} um apart."
    for mpp, times in data.enlarged.items():
        yield f"Windows of {short(mpp)} um/px were enlarged up to {times:.1f} times from the slides' pixels."
    yield "Species, tissue, stain and scanner are not recorded."


def _technology(reader: str) -> str:
    """A reader, and what it reads."""
    known = READERS.get(reader)
    return short(reader) if known is None else f"{reader} ({_EXTRA.sub('', known.about)})"


def _part(part: PartFacts) -> str:
    patients = f" of {names_of(part.patients, 'patient')}" if part.patients else ""
    if part.patients is not None and part.without_patient:
        unknown = part.without_patient
        all_are = unknown == len(part.slides)
        patients += "; patient not known" if all_are else f"; {unknown} without a known patient"
    spots = "" if part.spots is None else f"; {counted(part.spots, 'usable spot')}"
    return f"{names_of(part.slides, 'slide')}{patients}{spots}"


def _protocol(card: ModelCard) -> Iterator[str]:
    protocol = card.protocol
    if protocol.name is None:
        yield "How it was tested was not recorded."
        return
    yield f"Protocol: {short(protocol.name)}."
    if card.data.test.slides and _is_chosen_on_training(card):
        yield "Test slides were held out: no choice was made on them."
    if protocol.validation:
        yield f"Choices within training were validated by: {short(protocol.validation)}."
    if protocol.shared_patients:
        yield (
            f"{names_of(protocol.shared_patients, 'patient')} are in training and in test: the scores say"
            " nothing about new patients."
        )
    elif card.data.test.slides:
        yield "No patient who is named is in both training and test."
    if protocol.shared_patients_validation:
        yield f"{names_of(protocol.shared_patients_validation, 'patient')} are in training and in validation."


def _is_chosen_on_training(card: ModelCard) -> bool:
    """Whether no other slide had a part in choosing the panel."""
    return set(card.panel.slides) <= set(card.data.train.slides)


def _scores(card: ModelCard) -> Iterator[str]:
    head = card.scores.get("head")
    if head is None:
        yield "Nothing was tested: how good it is is not known."
        return
    yield (
        "PCC: correlation over a slide's spots, a mean over genes (undefined ones count 0) and slides; hvg50:"
        " the 50 genes that vary most in training; MSE, MAE: on the scale of the predictions."
    )
    if card.noise_ceiling is not None and head.pcc_of_ceiling is not None:
        yield (
            f"The counts are noisy: a perfect predictor would reach a PCC of"
            f" {number(card.noise_ceiling.pcc_slide)}, and the head reaches {head.pcc_of_ceiling:.0%} of it."
        )
    if card.patients is not None and len(card.patients) < 3:
        yield f"{counted(len(card.patients), 'test patient')}: too few for intervals over patients."


def _score_tables(card: ModelCard) -> Iterator[CardTable]:
    if not card.scores:
        return
    columns = ("predictor", "PCC", "of ceiling", "PCC hvg50", "PCC pooled", "MSE", "MAE")
    rows = [
        (
            _PREDICTORS.get(name, short(name)),
            number(scores.pcc_slide),
            "" if scores.pcc_of_ceiling is None else f"{scores.pcc_of_ceiling:.0%}",
            *(number(value) for value in (scores.pcc_slide_hvg50, scores.pcc_pooled, scores.mse, scores.mae)),
        )
        for name, scores in card.scores.items()
    ]
    if card.noise_ceiling is not None:
        ceiling = card.noise_ceiling
        known = (number(ceiling.pcc_slide), "", number(ceiling.pcc_slide_hvg50), "", "", "")
        rows.append(("noise ceiling", *known))
    if card.intervals is not None and any(card.intervals.values()):
        ends = [ends_of(card.intervals.get(key)) for key in ("pcc_slide", "pcc_slide_hvg50", "mse", "mae")]
        rows.append(("95% over patients", ends[0], "", ends[1], "", ends[2], ends[3]))
    yield CardTable("", columns, tuple(rows))
    if card.patients is not None and len(card.patients) > 1:
        yield CardTable(
            "By patient",
            ("patient", "slides", "PCC", "MSE", "MAE"),
            some_rows(
                [
                    (short(name), str(of.slides), number(of.pcc), number(of.mse), number(of.mae))
                    for name, of in card.patients.items()
                ]
            ),
        )
    if (head := card.scores.get("head")) is not None:
        yield CardTable(
            "By slide",
            ("slide", "spots", "PCC", "PCC hvg50", "MSE", "MAE"),
            some_rows(
                [
                    (
                        short(name),
                        str(of.n_spots),
                        *(number(value) for value in (of.pcc, of.pcc_hvg50, of.mse, of.mae)),
                    )
                    for name, of in head.slides.items()
                ]
            ),
        )


def _trust(card: ModelCard) -> Iterator[str]:
    if card.trust is None:
        yield "Which genes to trust was not judged."
    else:
        yield f"{short_sentence(card.trust.sentence(card.panel.genes))}."


def _gene_tables(card: ModelCard) -> Iterator[CardTable]:
    if card.trust is not None and card.trust.best:
        best = card.trust.best
        rows = [(short(of.gene), number(of.pcc), ends_of((of.low, of.high))) for of in best]
        title = (
            f"The best {agreeing(len(best), 'one', str(len(best)))} of them, on spots that fits did not see"
        )
        yield CardTable(title, ("gene", "PCC", "95% interval"), tuple(rows))


def _intervals(card: ModelCard) -> Iterator[str]:
    found, calibration = card.prediction_intervals, card.calibration
    condition = ""
    if calibration is not None:
        condition = calibration.condition
    elif found is not None:
        condition = found.condition or f"calibrated by {found.calibrated_on}"
    if condition:
        yield f"Prediction intervals are {short_sentence(condition)}."
    if calibration is not None and not calibration.of_patients:
        yield "They are no promise for new patients: too few were predicted by fits that had not seen them."
    if found is not None:
        yield f"{found.level:.0%} intervals hold {found.coverage:.1%} of the test targets."
        if (worst := found.worst_slide) is not None and len(found.slides) > 1:
            yield f"The slide that they hold least is {short(worst)}: {found.slides[worst]:.1%}."
    if not condition and found is None:
        yield "It has no prediction intervals."


def _limits(card: ModelCard) -> Iterator[str]:
    yield "For research only: not for diagnosis, and not to decide on the treatment of anybody."
    pitch = "" if card.data.pitch_um is None else f", with spots {card.data.pitch_um:.0f} um apart"
    yield (
        f"Use it on H&E slides like those of training: the same technology{pitch}, stain, scanner, species"
        " and tissue. Anything else was not tested."
    )
    if card.knows_tissue:
        yield (
            "Every prediction says how far its slide and its spots lie from the training tissue; mmap"
            " predict --strict fails slides that are unlike it."
        )
    elif card.knows_tissue is False:
        yield "It cannot tell whether a slide is like its training tissue."
    if card.protocol.shared_patients:
        yield "Its scores are on patients whom it has seen."
    if card.patients is not None and len(card.patients) < 3:
        yield f"It was tested on {counted(len(card.patients), 'patient')}: others may differ much."
    if not card.scores:
        yield "It was not tested."
    if card.panel.smoothed:
        yield "Measured values were smoothed before they were compared: on spots as such, scores are lower."
    if not _is_chosen_on_training(card):
        yield "The panel was chosen on slides beyond those of training."
    if card.trust is None or not card.trust.of_patients:
        yield "No gene is known to be predicted well on new patients."
    elif card.trust.trusted < card.panel.genes:
        yield "Genes that are not trusted may be predicted no better than by chance."
    for encoder in card.encoders:
        if encoder.commercial is False:
            yield f"{short(encoder.name)} is for non-commercial use only ({encoder.licence})."
        if encoder.gated:
            yield f"Whoever embeds slides needs access to {short(encoder.name)}, which is gated."


def _flags(encoder: EncoderFacts) -> str:
    """What else an extraction has to be told, so that the head takes what it gives."""
    resized = encoder.own_input_px not in (None, encoder.input_px) and encoder.input_px is not None
    size = f" --input-px {encoder.input_px}" if resized else ""
    return f"{size} --tokens {encoder.tokens}" if encoder.tokens else size


def _commands(card: ModelCard) -> Iterator[str]:
    code = " --head-code FILE.py:NAME" if card.head_code_sha256 else ""
    if all(encoder.own_input_px is not None and not encoder.imported for encoder in card.encoders):
        yield f"mmap predict RUN SLIDES --out predictions{code}  # images, or a cohort: embedded first"
    mpp = ",".join(f"{mpp:g}" for mpp in card.encoders[0].mpps)
    for encoder in card.encoders:
        if encoder.imported:
            continue
        name = printable(encoder.name)
        quoted = shlex.quote(name) if len(name) <= _LONGEST_NAME else "ENCODER"
        yield f"mmap extract COHORT STORE --encoder {quoted} --mpp {mpp}{_flags(encoder)}"
    yield f"mmap predict RUN STORE --out predictions{code}"
