"""A trained `mmap` head: ridge on fixed attention, the level of a slide, and learned attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from mmap_st.errors import HeadError, first_line
from mmap_st.head.attending import Attention
from mmap_st.head.basis import Basis, Components
from mmap_st.head.blocks import Block, spot_blocks
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import LIMITS, HeldOut, Shape, Tensors
from mmap_st.head.mmap.features import FeatureBlocks, SlideFeatures, feature_blocks, slide_features
from mmap_st.head.mmap.settings import MmapSettings
from mmap_st.head.mmap.training import SlideTensors, network_output
from mmap_st.head.networks import MmapNetwork

Array = NDArray[np.float32]


@dataclass
class MmapHead:
    """A trained `mmap` head.

    Attributes
    ----------
    components
        Axes of the embeddings.
    block_scale
        (B,) float32 factors of the groups of features, see `block_scales`.
    weight
        (B * M * c, r) float32, ridge on the scaled features.
    mean
        (G,) float32, the training mean.
    basis
        Turns the r coordinates into genes.
    level
        The levels of slides; None: not used.
    networks
        Members of the ensemble; their mean output, times `blend`, is added.
    left_out
        Predictions of the training spots by the fits of the inner folds.
    centre
        Whether a slide's coordinates are centred over its valid spots.
    """

    components: Components
    block_scale: Array
    weight: Array
    mean: Array
    basis: Basis
    level: SlideLevel | None
    networks: Sequence[MmapNetwork]
    blend: float
    device: str
    left_out: Sequence[HeldOut] = ()
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, object] = field(default_factory=dict)
    centre: bool = False

    def predict(self, slide: HeadSlide) -> Array:
        return self._predict(slide, slide_features(slide, self.components))

    def predict_and_attend(self, slide: HeadSlide) -> tuple[Array, Attention | None]:
        features = slide_features(slide, self.components)
        weights = features.attention()
        return self._predict(slide, features), None if weights is None else Attention(weights)

    def _predict(self, slide: HeadSlide, features: SlideFeatures) -> Array:
        base: Array = self.mean + level_of(self.level, slide, len(self.mean))
        predicted = np.full((len(slide), len(base)), np.nan, np.float32)
        valid = np.flatnonzero(slide.valid)
        blocks = [valid[start : start + LIMITS.block] for start in range(0, len(valid), LIMITS.block)]
        if not self.centre:
            for rows in blocks:
                predicted[rows] = base + self.basis.expression(self._coordinates(features, rows))
            return predicted
        coordinates = [self._coordinates(features, rows) for rows in blocks]
        mean = sum(part.sum(axis=0, dtype=np.float64) for part in coordinates) / max(len(valid), 1)
        for rows, part in zip(blocks, coordinates, strict=True):
            predicted[rows] = base + self.basis.expression((part - mean).astype(np.float32))
        return predicted

    def predict_blocks(self, slide: HeadSlide, size: int, *, attend: bool) -> Iterator[Block]:
        base: Array = self.mean + level_of(self.level, slide, len(self.mean))
        features = feature_blocks(slide, self.components, size)
        mean = self._mean(slide, features, size) if self.centre else np.zeros(self.basis.rank)
        for rows, attention, valid, coordinates in self._parts(slide, features, size, attend):
            predicted = np.full((rows.stop - rows.start, len(base)), np.nan, np.float32)
            centred = (coordinates - mean).astype(np.float32)
            predicted[valid] = base + self.basis.expression(centred)
            yield Block(rows, predicted, attention)

    def _mean(self, slide: HeadSlide, features: FeatureBlocks, size: int) -> NDArray[np.float64]:
        """(r,) mean coordinates of a slide's valid spots."""
        total = np.zeros(self.basis.rank)
        for _, _, _, coordinates in self._parts(slide, features, size, attend=False):
            total += coordinates.sum(axis=0, dtype=np.float64)
        return total / max(int(slide.valid.sum()), 1)

    def _parts(
        self, slide: HeadSlide, features: FeatureBlocks, size: int, attend: bool
    ) -> Iterator[tuple[slice, Attention | None, NDArray[np.int64], Array]]:
        """Blocks of `size` spots: their attention, which of them are valid, and these ones' coordinates."""
        for block, known, places in features:
            for part in spot_blocks(len(places), size):
                rows = slice(block.start + part.start, block.start + part.stop)
                valid = np.flatnonzero(slide.valid[rows])
                own = places[part]
                weights = known.only(own).attention() if attend else None
                coordinates = np.empty((len(valid), self.basis.rank), np.float32)
                for few in spot_blocks(len(valid), LIMITS.block):
                    coordinates[few] = self._coordinates(known, own[valid[few]])
                yield rows, None if weights is None else Attention(weights), valid, coordinates

    def _coordinates(self, features: SlideFeatures, rows: NDArray[np.int64]) -> Array:
        """(k, r) float32 coordinates of some spots: ridge plus the networks."""
        blocks = features.blocks(rows)
        scaled: Array = (blocks * self.block_scale[:, None]).reshape(len(rows), -1)
        coordinates: Array = scaled @ self.weight
        if self.networks:
            tensors = SlideTensors.of(features, rows, blocks, self.device)
            added: Array = np.mean([network_output(network, tensors) for network in self.networks], axis=0)
            coordinates += np.float32(self.blend) * added
        return coordinates

    def tensors(self) -> Tensors:
        found: Tensors = {
            "components": self.components.axes,
            "block_scale": self.block_scale,
            "weight": self.weight,
            "mean": self.mean,
            **self.basis.tensors(),
        }
        if self.level is not None:
            found |= {f"level.{key}": value for key, value in vars(self.level).items()}
        for number, network in enumerate(self.networks):
            state = network.state_dict()
            found |= {f"network.{number}.{k}": v.detach().cpu().numpy() for k, v in state.items()}
        return found

    def held_out(self) -> Sequence[HeldOut]:
        return self.left_out


def level_of(level: SlideLevel | None, slide: HeadSlide, genes: int) -> Array:
    """(G,) float32 level of a slide; 0 where levels are not used, or the slide has no candidates."""
    if level is None or slide.centre is None:
        return np.zeros(genes, np.float32)
    return level.of(slide_descriptor(slide.centre))


#: Widths of the kernel, in median squared distances between training slides, and strengths to try.
SCALES = (0.3, 1.0, 3.0, 10.0)
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)
# Levels are used if the squared error with them is at most this share of that without.
_MAX_ERROR_SHARE = 0.9
_MIN_SLIDES = 3


@dataclass(frozen=True)
class SlideLevel:
    """Kernel regression from a slide's descriptor to how its mean expression differs from the training mean.

    A slide unlike all training slides gets 0, which stands for the training mean.

    Attributes
    ----------
    descriptor
        (S, D) float32 of the training slides.
    weight
        (S, G) float32.
    width
        (1,) float32, squared distance at which the kernel falls to 1/e.
    """

    descriptor: NDArray[np.float32]
    weight: NDArray[np.float32]
    width: NDArray[np.float32]

    def of(self, descriptor: NDArray[np.float32]) -> NDArray[np.float32]:
        """(G,) float32 level of a slide with this (D,) descriptor."""
        kernel = np.exp(-_squared_distance(descriptor[None], self.descriptor) / self.width)
        level: NDArray[np.float32] = (kernel @ self.weight)[0].astype(np.float32)
        return level


def slide_descriptor(centre: NDArray[np.float32]) -> NDArray[np.float32]:
    """(M * d,) float32 mean of a slide's prototype candidates (K, M, d), not standardised."""
    mean: NDArray[np.float32] = centre.mean(axis=0, dtype=np.float64).ravel().astype(np.float32)
    return mean


def fit_slide_level(
    descriptors: Sequence[NDArray[np.float32]], levels: NDArray[np.float32], folds: Sequence[int]
) -> tuple[SlideLevel | None, dict[str, float]]:
    """Fit levels, with width and strength chosen by folds; None where they reduce the error too little.

    Parameters
    ----------
    descriptors
        (D,) float32 of each of the S training slides.
    levels
        (S, G) float32 mean target of each slide minus the training mean; a gene that a slide does not have
        is 0 or NaN, which count as the training mean.
    folds
        Fold of each slide.

    Returns
    -------
    The fitted levels, and what was chosen: scale, strength, and the squared error on slides of other folds
    as a share of that without levels.
    """
    known = np.nan_to_num(levels.astype(np.float64))
    fold = np.array(folds)
    if len(fold) < _MIN_SLIDES or len(set(folds)) < 2:
        return None, {}
    points = np.stack(descriptors)
    distance = _squared_distance(points, points)
    typical = float(np.median(distance[np.triu_indices(len(distance), 1)]))
    if typical <= 0:
        return None, {}
    without_levels = float((known**2).sum())
    tried = {
        (scale, strength): _left_out_error(np.exp(-distance / (scale * typical)), strength, known, fold)
        for scale in SCALES
        for strength in STRENGTHS
    }
    (scale, strength), error = min(tried.items(), key=lambda item: item[1])
    if without_levels <= 0 or error > _MAX_ERROR_SHARE * without_levels:
        return None, {}
    width = scale * typical
    weight = _solve(np.exp(-distance / width), strength, known)
    fitted = SlideLevel(points, weight.astype(np.float32), np.array([width], np.float32))
    return fitted, {"scale": scale, "strength": strength, "error_left": error / without_levels}


def _left_out_error(
    kernel: NDArray[np.float64], strength: float, levels: NDArray[np.float64], fold: NDArray[np.int64]
) -> float:
    error = 0.0
    for number in np.unique(fold):
        out, fitted = fold == number, fold != number
        weight = _solve(kernel[np.ix_(fitted, fitted)], strength, levels[fitted])
        predicted = kernel[np.ix_(out, fitted)] @ weight
        error += float(((levels[out] - predicted) ** 2).sum())
    return error


def _solve(kernel: NDArray[np.float64], strength: float, levels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.solve(kernel + strength * np.eye(len(kernel)), levels), np.float64)


def _squared_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    squared: NDArray[np.float64] = cdist(a.astype(np.float64), b.astype(np.float64), "sqeuclidean")
    return squared


def make_network(settings: MmapSettings, components: Components, outputs: int) -> MmapNetwork:
    """Make an untrained network whose output is 0."""
    magnifications, _, count = components.axes.shape
    network = MmapNetwork(
        2 * magnifications,
        count,
        outputs,
        width=settings.width,
        heads=settings.heads,
        dropout=settings.dropout,
        input_dropout=settings.input_dropout,
        prototypes=settings.prototypes != "none",
        learned_prototypes=settings.learned if settings.prototypes == "learned" else 0,
        concatenate=settings.fusion == "concatenate",
    )
    for layer in (network.local_out, network.global_out):
        if layer is not None:
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    return network


def load_mmap(tensors: Tensors, settings: MmapSettings, shape: Shape) -> MmapHead:
    """Load a trained head from its tensors.

    Raises
    ------
    HeadError
        If the tensors do not fit the head.
    """
    try:
        level = {k.removeprefix("level."): v for k, v in tensors.items() if k.startswith("level.")}
        components = Components(tensors["components"], settings.scaling == "ranks")
        basis = Basis.load(tensors, shape.genes)
        members: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("network."):
                number, name = key.removeprefix("network.").split(".", 1)
                members.setdefault(int(number), {})[name] = torch.from_numpy(value)
        networks = []
        for _, state in sorted(members.items()):
            network = make_network(settings, components, basis.rank)
            network.load_state_dict(state)
            networks.append(network)
        return MmapHead(
            components,
            tensors["block_scale"],
            tensors["weight"],
            tensors["mean"],
            basis,
            SlideLevel(**level) if level else None,
            networks,
            settings.blend,
            "cpu",
            centre=settings.centre,
        )
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise HeadError(f"The saved weights do not fit the head: {first_line(error)}") from error
