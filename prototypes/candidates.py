"""Prototype candidates of one slide, k-means centres by FAISS, and the selection of a spot's prototypes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import MissingDependencyError, RequestError, counted
from mmap_st.extract.store import BLOCK_BYTES, Embeddings, row_blocks

KINDS = ("kmeans", "random")

_FEWEST, _MOST, _SPOTS_EACH = 32, 80, 5
#: Spots of a slide that k-means is trained on, at most.
MAX_SPOTS = 50_000


@dataclass(frozen=True)
class CandidateSettings:
    """How candidates are made; their key in the store is a hash of this and the embeddings' recipes.

    Attributes
    ----------
    kind
        ``kmeans``, or ``random``: spots drawn at random instead of cluster centres.
    clusters
        Number K; None: `automatic_clusters`.
    iterations, seed
        Of k-means.
    """

    kind: str = "kmeans"
    clusters: int | None = None
    iterations: int = 25
    seed: int = 0


@dataclass(frozen=True)
class Candidates:
    """The candidates of one slide.

    Attributes
    ----------
    centre
        (K, M, d) float32, mean embedding of the members at each magnification.
    size
        (K,) int32, number of members.
    medoid
        (K,) int32, index of the spot nearest to the centre.
    label
        (n,) int32, candidate of each spot; -1 for an invalid spot.
    """

    centre: NDArray[np.float32]
    size: NDArray[np.int32]
    medoid: NDArray[np.int32]
    label: NDArray[np.int32]


def automatic_clusters(n: int) -> int:
    """K = clip(n // 5, 32, 80), never above n (the released MMAP code)."""
    return min(max(_FEWEST, min(n // _SPOTS_EACH, _MOST)), n)


def selection_space(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, M * d) float32: embeddings (n, M, d), each magnification scaled to length 1, then joined."""
    norm = np.linalg.norm(embedding, axis=2, keepdims=True)
    unit = embedding / np.maximum(norm, np.finfo(np.float32).tiny)
    return np.ascontiguousarray(unit.reshape(len(embedding), -1), dtype=np.float32)


def build_candidates(
    embedding: Embeddings,
    valid: NDArray[np.bool_],
    settings: CandidateSettings,
    *,
    max_spots: int = MAX_SPOTS,
    block_bytes: int = BLOCK_BYTES,
) -> Candidates:
    """Cluster one slide's spots.

    Parameters
    ----------
    embedding
        (n, M, d) float32.
    valid
        (n,) False where a row cannot be used.
    settings
        How to make them.
    max_spots
        If more spots are valid, cluster centres are computed on about this many, evenly spaced; all spots
        are then assigned to them, and a candidate is still the mean of all its members.
    block_bytes
        Size of the blocks in which spots are read.

    Raises
    ------
    RequestError
        If no spot is valid, or the settings cannot be used.
    MissingDependencyError
        If faiss is not installed.
    """
    if settings.kind not in KINDS:
        raise RequestError(f"Unknown kind of candidates {settings.kind!r}; give one of {', '.join(KINDS)}.")
    if settings.clusters is not None and settings.clusters < 1:
        raise RequestError(f"--clusters {settings.clusters}: give a number of 1 or more, or auto.")
    rows = np.flatnonzero(valid)
    if len(rows) == 0:
        raise RequestError("no spot has a valid embedding; extract the slide again.")
    clusters = min(settings.clusters or automatic_clusters(len(rows)), len(rows))
    blocks = list(row_blocks(embedding, rows, block_bytes))
    if settings.kind == "random":
        chosen = np.sort(np.random.default_rng(settings.seed).choice(len(rows), clusters, replace=False))
        drawn = embedding[rows[chosen]]
        space = selection_space(drawn)
        labels = np.concatenate([_nearest(selection_space(embedding[part]), space) for _, part in blocks])
    else:
        labels = _kmeans_labels(embedding, rows, clusters, settings, max_spots, block_bytes)
    # Empty clusters are dropped, and the others renumbered.
    present, labels, size = np.unique(labels, return_inverse=True, return_counts=True)
    centre = np.zeros((len(size), *embedding.shape[1:]), np.float64)
    for where, part in blocks:
        np.add.at(centre, labels[where], embedding[part].astype(np.float64))
    centre /= size[:, None, None]
    if settings.kind == "random":
        centre = drawn[present].astype(np.float64)
    label = np.full(len(valid), -1, np.int32)
    label[rows] = labels
    centres = centre.astype(np.float32)
    space = selection_space(centres)
    distance = np.concatenate(
        [
            np.linalg.norm(selection_space(embedding[part]) - space[labels[where]], axis=1)
            for where, part in blocks
        ]
    )
    return Candidates(
        centre=centres,
        size=size.astype(np.int32),
        medoid=rows[_medoids(distance, labels)].astype(np.int32),
        label=label,
    )


def _kmeans_labels(
    embedding: Embeddings,
    rows: NDArray[np.int64],
    clusters: int,
    settings: CandidateSettings,
    max_spots: int,
    block_bytes: int,
) -> NDArray[np.int64]:
    """(n,) nearest centre of each row; centres are computed on about `max_spots` rows."""
    faiss = import_faiss()
    fitted = rows[:: -(-len(rows) // max_spots)]
    points = np.empty((len(fitted), int(np.prod(embedding.shape[1:]))), np.float32)
    for where, part in row_blocks(embedding, fitted, block_bytes):
        points[where] = selection_space(embedding[part])
    kmeans = faiss.Kmeans(
        points.shape[1],
        clusters,
        niter=settings.iterations,
        seed=settings.seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
        gpu=gpu_count(faiss) > 0,
    )
    kmeans.train(points)
    if len(fitted) == len(rows):
        nearest = kmeans.index.search(points, 1)[1]
    else:
        del points
        nearest = np.concatenate(
            [
                kmeans.index.search(selection_space(embedding[part]), 1)[1]
                for _, part in row_blocks(embedding, rows, block_bytes)
            ]
        )
    labels: NDArray[np.int64] = nearest.ravel()
    return labels


def _nearest(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    labels: NDArray[np.int64] = np.argmax(points @ centres.T, axis=1)
    return labels


def _medoids(distance: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K,) the member with the smallest `distance` (n,) to its centre, ties by index."""
    order = np.lexsort((np.arange(len(labels)), distance, labels))
    _, first = np.unique(labels[order], return_index=True)
    medoids: NDArray[np.int64] = order[first]
    return medoids


def import_faiss() -> ModuleType:
    """Import faiss.

    Raises
    ------
    MissingDependencyError
        If it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            "FAISS is not installed: `pip install mmap-st[cpu]`, or mmap-st[gpu] with an NVIDIA card."
        ) from error
    module: ModuleType = faiss
    return module


def gpu_count(faiss: Any) -> int:
    """Number of GPUs that this build of faiss can use."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def device_of_kmeans() -> str:
    """Describe where k-means runs on this machine."""
    gpus = gpu_count(import_faiss())
    return f"FAISS on {counted(gpus, 'GPU')}" if gpus else "FAISS on the CPU"


def selected_count(candidates: int, number: int | None = None, share: float = 0.5) -> int:
    """Return L: `number` if it is given, else ceil(share * K), never above K; the paper has 0.5 K."""
    return min(candidates, number if number is not None else math.ceil(share * candidates))


def select_prototypes(
    embedding: Embeddings, centre: NDArray[np.float32], count: int, block_bytes: int = BLOCK_BYTES
) -> NDArray[np.bool_]:
    """Mark the candidates nearest to each spot by cosine similarity, ties by index.

    Parameters
    ----------
    embedding
        (n, M, d) spots.
    centre
        (K, M, d) candidates of the same slide.
    count
        Number L of candidates to select for each spot.
    block_bytes
        Size of the blocks in which spots are read.

    Returns
    -------
    (n, K) bool with L True in each row, none for spots with NaN.
    """
    centres = selection_space(centre)
    mask = np.zeros((embedding.shape[0], len(centre)), np.bool_)
    for _, rows in row_blocks(embedding, np.arange(len(mask)), block_bytes):
        # All rows of the space have the same length: the dot product gives the order of the cosine.
        similarity = selection_space(embedding[rows]) @ centres.T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
        finite = np.isfinite(similarity).all(axis=1)
        mask[rows[:, None], nearest] = finite[:, None]
    return mask
