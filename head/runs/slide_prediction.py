"""Predict one slide: whole, or block by block into its file where that would take too much memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import SlideError, counted, first_line
from mmap_st.head.attending import predict_and_attend
from mmap_st.head.blocks import Block, predict_blocks, spot_blocks
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.runs.prediction_files import (
    ATTENTION,
    ATTENTION_OF,
    MEASURED,
    SPREAD,
    UNS,
    FilledFile,
    filling,
    prediction_table,
)
from mmap_st.head.runs.saved_head import SavedHead
from mmap_st.head.runs.spatial_metadata import SpatialMetadata
from mmap_st.head.runs.suitability import Suitability
from mmap_st.head.scoring import (
    GeneSets,
    RunningCoverage,
    RunningMoments,
    RunningScores,
    SlideScores,
    coverage,
    slide_metrics,
)

if TYPE_CHECKING:
    import anndata

#: Slides of more values (spots times genes), or of more spots, are predicted block by block; and attention of
#: more values (spots times candidates) is not kept.
MOST_VALUES, MOST_SPOTS = 1 << 26, 1 << 18
#: Bytes of embeddings that are held of such a slide.
MAX_BYTES_OF_LARGE = 1 << 26
# Of a block: 8 MiB as float32; what is computed of them takes some ten times as much.
_BLOCK_VALUES = 1 << 21


def is_large(spots: int, genes: int) -> bool:
    """Whether a slide is predicted block by block."""
    return spots > MOST_SPOTS or spots * genes > MOST_VALUES


@dataclass(frozen=True)
class PreparedSlide:
    """A slide that a head is about to predict.

    Attributes
    ----------
    saved
        The head.
    slide
        With targets where a cohort has measured values.
    about
        What is known of it, for ``uns["mmap"]`` of its file.
    suitability
        Whether it is like the slides of training.
    spatial
        Where its spots lie.
    """

    saved: SavedHead
    slide: HeadSlide
    about: dict[str, object]
    suitability: Suitability
    spatial: SpatialMetadata

    @property
    def is_large(self) -> bool:
        """Whether it is predicted block by block."""
        return is_large(len(self.slide), len(self.saved.genes))

    @property
    def distance(self) -> NDArray[np.float32] | None:
        """(n,) of its spots from the training tissue; None where the head does not know."""
        strangeness = self.suitability.strangeness
        return None if strangeness is None else strangeness.spots

    @property
    def is_scored(self) -> bool:
        """Whether there is anything to compare predictions with."""
        return self.slide.target is not None and bool(self.slide.usable.any())


@dataclass(frozen=True)
class WrittenSlide:
    """How good the prediction of a slide is that was written, where its cohort has measured values."""

    scores: SlideScores | None
    coverage: float | None


@dataclass(frozen=True)
class PredictedSlide(WrittenSlide):
    """The prediction of one slide, and how good it is."""

    table: anndata.AnnData


def predict_whole(prepared: PreparedSlide) -> PredictedSlide:
    """Predict a slide in memory.

    Raises
    ------
    SlideError
        If the head fails on it.
    """
    saved, slide, about = prepared.saved, prepared.slide, dict(prepared.about)
    try:
        predicted, attention = predict_and_attend(saved.head, slide)
    except (ValueError, LookupError, RuntimeError) as error:
        raise _failed(error) from error
    _check_shape(predicted.shape, len(slide.ids), len(saved.genes))
    if attention is not None:
        about[ATTENTION_OF] = saved.encoders[attention.encoder]
    scores, covered = _scores(prepared, predicted)
    if scores is not None:
        about["scores"] = _told(scores, covered)
    table = prediction_table(
        slide,
        predicted,
        saved.genes,
        about,
        saved.spread,
        saved.trust,
        prepared.suitability,
        prepared.spatial,
        saved.card.panel.gene_ids,
        attention,
    )
    return PredictedSlide(scores, covered, table)


def _scores(
    prepared: PreparedSlide, predicted: NDArray[np.float32]
) -> tuple[SlideScores | None, float | None]:
    """Scores, and coverage of the 90% intervals, on a slide that was measured."""
    saved, slide, distance = prepared.saved, prepared.slide, prepared.distance
    if slide.target is None or not prepared.is_scored:
        return None, None
    scores = slide_metrics(predicted, slide.target)
    if saved.spread is None:
        return scores, None
    distances = None if distance is None else {slide.name: distance}
    covered = coverage(saved.spread, {slide.name: predicted}, {slide.name: slide.target}, distances)
    return scores, covered.slides[slide.name]


def write_blocks(prepared: PreparedSlide, path: Path, gene_sets: GeneSets | None = None) -> WrittenSlide:
    """Predict a slide block by block into its file, which is there whole or not at all.

    Raises
    ------
    SlideError
        If the head fails on it.
    WriteError
        If the disk is full, or may not be written to.
    """
    saved, slide = prepared.saved, prepared.slide
    table = prediction_table(
        slide,
        None,
        saved.genes,
        prepared.about,
        saved.spread,
        saved.trust,
        prepared.suitability,
        prepared.spatial,
        saved.card.panel.gene_ids,
    )
    size = block_spots(len(saved.genes))
    layers = [name for name, found in ((SPREAD, saved.spread), (MEASURED, slide.target)) if found is not None]
    with filling(path, table, layers, size) as file:
        scores, covered = _fill(prepared, file, size, gene_sets)
        if scores is not None:
            file.add(f"uns/{UNS}", "scores", _told(scores, covered))
    return WrittenSlide(scores, covered)


def block_spots(genes: int) -> int:
    """Spots of a block: a power of two."""
    return 1 << max(0, (_BLOCK_VALUES // max(genes, 1)).bit_length() - 1)


def _fill(
    prepared: PreparedSlide, file: FilledFile, size: int, gene_sets: GeneSets | None
) -> tuple[SlideScores | None, float | None]:
    """Write what is predicted of each block, and what is known when all are."""
    saved, slide, distance = prepared.saved, prepared.slide, prepared.distance
    scores, covered = RunningScores(len(saved.genes)), RunningCoverage()
    used = np.empty(0, np.int64) if gene_sets is None else gene_sets.used
    moments = RunningMoments(len(used))
    attended: list[NDArray[np.float16]] = []
    encoder = 0
    for block in _blocks(prepared, size):
        rows, predicted = block.rows, block.predicted
        layers = {}
        if saved.spread is not None:
            near = None if distance is None else distance[rows]
            layers[SPREAD] = saved.spread.of(predicted, distance=near)
        if slide.target is not None:
            layers[MEASURED] = slide.target.dense(rows)
            scores.add(predicted, layers[MEASURED])
            if saved.spread is not None:
                covered.add(predicted, layers[MEASURED], saved.spread.factor * layers[SPREAD])
        if gene_sets is not None:
            moments.add(predicted[np.ix_(np.isfinite(predicted).all(axis=1), used)])
        if block.attention is not None:
            attended.append(block.attention.weights)
            encoder = block.attention.encoder
        file.write(rows, predicted, **layers)
    if attended:
        file.add("obsm", ATTENTION, np.concatenate(attended))
        file.add(f"uns/{UNS}", ATTENTION_OF, saved.encoders[encoder])
    if gene_sets is not None:
        file.add_columns(_set_scores(file, gene_sets, moments, len(slide), size))
    return (scores.scores().summary(), covered.share) if prepared.is_scored else (None, None)


def _set_scores(
    file: FilledFile, gene_sets: GeneSets, moments: RunningMoments, spots: int, size: int
) -> dict[str, NDArray[np.float32]]:
    """(n,) scores of gene sets by column, of the predictions that a file holds."""
    parts = (gene_sets.scores_of_block(file.predicted(rows), moments) for rows in spot_blocks(spots, size))
    found: dict[str, NDArray[np.float32]] = {}
    for rows, part in zip(spot_blocks(spots, size), parts, strict=True):
        for name, values in part.items():
            found.setdefault(name, np.empty(spots, np.float32))[rows] = values
    return found


def _blocks(prepared: PreparedSlide, size: int) -> Iterator[Block]:
    """Blocks of predictions of all spots in their order; whatever fails here is the head's or the slide's."""
    saved, slide = prepared.saved, prepared.slide
    candidates = max(0 if one.centre is None else len(one.centre) for one in slide.by_encoder)
    attend = len(slide) * candidates <= MOST_VALUES
    expected = spot_blocks(len(slide), size)
    try:
        for block in predict_blocks(saved.head, slide, size, attend=attend):
            rows = next(expected, None)
            if rows != block.rows:
                raise ValueError(f"it predicted spots {block.rows} in place of {rows}")
            _check_shape(block.predicted.shape, rows.stop - rows.start, len(saved.genes))
            yield block
    except OSError as error:  # of what is read: it must not be taken for one of what is written
        raise SlideError(f"it cannot be read ({first_line(error)}).") from error
    except (ValueError, LookupError, RuntimeError) as error:
        raise _failed(error) from error
    if next(expected, None) is not None:
        raise _failed(ValueError("it did not predict all spots"))


def _failed(error: Exception) -> SlideError:
    return SlideError(
        f"the head failed on it ({type(error).__name__}: {first_line(error)}); the run may be damaged:"
        " restore it from a copy, or fit it again."
    )


def _check_shape(shape: tuple[int, ...], spots: int, genes: int) -> None:
    if shape != (spots, genes):
        raise SlideError(
            f"the head predicted an array of {shape} for {counted(spots, 'spot')} and"
            f" {counted(genes, 'gene')}; the run may be damaged: restore it from a copy, or fit it again."
        )


def _told(scores: SlideScores, covered: float | None) -> dict[str, object]:
    """Scores as ``uns["mmap"]`` has them."""
    known: dict[str, object] = {
        "n_spots": scores.n_spots,
        "pcc": scores.pcc,
        "mse": scores.mse,
        "mae": scores.mae,
    }
    return known | ({} if covered is None else {"coverage_90": covered})
