"""Networks as heads: fitted, applied, saved and loaded.

The number of epochs is chosen on validation slides or folds; then a network trains on all slides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmap_st.data import ALL, Index
from mmap_st.errors import HeadError, first_line
from mmap_st.head.basis import Basis, fit_basis, validation_genes
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import LIMITS, HeadMethod, HeldOut, Shape, Tensors, Validation, best_of, cross_fit
from mmap_st.head.linear import training_mean
from mmap_st.head.networks.network import (
    REFERENCE_PREFIX,
    BlockNetwork,
    Inputs,
    NetworkSettings,
    Sizes,
    SpotBlock,
    TrainingBlock,
    is_reference,
    split_into_blocks,
)
from mmap_st.head.networks.optimiser import Schedule, optimise, resolved_device, seeded
from mmap_st.head.scoring import slide_metrics
from mmap_st.progress import ProgressCallback

Array = NDArray[np.float32]


@dataclass
class NetworkHead:
    """A trained network: prediction = mean + its output, on the axes of a basis.

    Attributes
    ----------
    network
        On its device.
    mean
        (G,) float32, mean of the training targets.
    basis
        Turns the r outputs into genes.
    device
        Where the network is.
    left_out
        Computes the predictions of `held_out`.
    """

    network: BlockNetwork
    mean: Array
    basis: Basis
    device: str
    left_out: Callable[[], Sequence[HeldOut]] = tuple
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, object] = field(default_factory=dict)

    def predict(self, slide: HeadSlide) -> Array:
        predicted = np.full((len(slide), len(self.mean)), np.nan, np.float32)
        blocks = split_into_blocks(slide)
        while blocks:
            block = blocks.pop()  # and with it what it read
            predicted[block.rows] = self.predict_block(block)
        return predicted

    def predict_block(self, block: SpotBlock, genes: Index = ALL) -> Array:
        """(k, g) float32 expression of all spots of a block."""
        self.network.eval()
        with torch.inference_mode():
            rows = torch.arange(len(block), device=self.device)
            output = self.network(to_device(self.network.prepare_inputs(block), self.device), rows)
        return self.mean[genes] + self.basis.expression(output.float().cpu().numpy(), genes)

    def tensors(self) -> Tensors:
        state = {f"network.{key}": value.cpu().numpy() for key, value in self.network.state_dict().items()}
        return {"mean": self.mean, **self.basis.tensors(), **state}

    def held_out(self) -> Sequence[HeldOut]:
        return self.left_out()


def load_network(
    make: Callable[[Sizes, Any], BlockNetwork], tensors: Tensors, settings: Any, shape: Shape
) -> NetworkHead:
    """Load a trained network from its tensors; `make` returns an untrained one.

    Raises
    ------
    HeadError
        If the tensors do not fit the network.
    """
    basis = Basis.load(tensors, shape.genes)
    state = {key.removeprefix("network."): v for key, v in tensors.items() if key.startswith("network.")}
    try:
        network = make(Sizes(shape.magnifications, shape.width, basis.rank, shape.token_width), settings)
        for key, value in state.items():
            if is_reference(key):
                network.store_reference(key.removeprefix(REFERENCE_PREFIX), value)
        network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
        return NetworkHead(network, tensors["mean"], basis, "cpu")
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise HeadError(f"The saved weights do not fit the head: {first_line(error)}") from error


def to_device(inputs: Inputs, device: str) -> dict[str, torch.Tensor]:
    """Move inputs to a device."""
    return {name: value.to(device) for name, value in inputs.items()}


# Spots that a network is trained on, at most, in whole blocks.
_MAX_SPOTS = 51_200
_MIN_STEPS = 4
# How often a training is validated: each time needs a copy of the network until the best epoch is known.
_VALIDATIONS = 5
# Distance between the seeds of folds, so that no two networks of a fit start alike.
_SEED_STEP = 1_000

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Trial:
    """The training without one fold: the head, and its state and scores after each validated epoch."""

    head: NetworkHead
    states: Sequence[State]
    curve: Sequence[dict[str, float]]


class NetworkFit:
    """The steps of one fit.

    Parameters
    ----------
    make
        Function of (sizes, settings) that returns an untrained network.
    train
        Slides with targets.
    settings, seed
        Of the head.
    """

    def __init__(
        self,
        make: Callable[[Sizes, Any], BlockNetwork],
        train: Sequence[HeadSlide],
        settings: NetworkSettings,
        seed: int,
    ) -> None:
        self._make, self._settings, self._seed = make, settings, seed
        self._device = resolved_device(settings.device)
        self._basis, self._genes = fit_basis(train, settings.rank), validation_genes(train)
        _, magnifications, width = train[0].embedding.shape
        token_width = 0 if train[0].tokens is None else train[0].grids.shape[3]
        self._sizes = Sizes(magnifications, width, self._basis.rank, token_width)
        # Slides are in several folds. A small cohort is read once for all of them; the blocks of a large one
        # are held only while they train or validate, since each fold uses others.
        self._blocks: dict[int, list[SpotBlock]] = {}
        self._is_small = sum(int(slide.valid.sum()) for slide in train) <= _MAX_SPOTS

    def trial(self, number: int, fitted: Sequence[HeadSlide], validation: Sequence[HeadSlide]) -> _Trial:
        """Train without a fold, and validate on it every few epochs."""
        curve: list[dict[str, float]] = []
        states: list[State] = []
        every = max(1, self._settings.epochs // _VALIDATIONS)

        def validate(head: NetworkHead, epoch: int, loss: float) -> bool:
            if epoch % every == 0 or epoch == self._settings.epochs:
                curve.append({"epoch": float(epoch), "training_loss": loss, **self._score(head, validation)})
                states.append(_state_of(head.network))
            return False

        head = self._train(fitted, self._seed + _SEED_STEP * (number + 1), validate)
        return _Trial(head, states, curve)

    def final(self, train: Sequence[HeadSlide], epochs: int) -> NetworkHead:
        """Train on all slides, for as many epochs as were chosen."""
        return self._train(train, self._seed, lambda head, epoch, loss: epoch == epochs)

    def _train(
        self,
        slides: Sequence[HeadSlide],
        seed: int,
        after_epoch: Callable[[NetworkHead, int, float], bool],
    ) -> NetworkHead:
        """Train until `after_epoch` returns True."""
        if not self._is_small:
            self._blocks.clear()
        slides = [slide for slide in slides if slide.usable.any()]
        with seeded(seed, self._device):
            network = self._make(self._sizes, self._settings).to(self._device)
            mean = training_mean(slides)
            blocks = self._training_blocks(slides, mean, network.centred_in_slides)
            network.fit_reference(blocks)
            loss, steps = self._loss(network, blocks, np.random.default_rng(seed))
            head = NetworkHead(network, mean, self._basis, self._device)
            schedule = Schedule(
                self._settings.learning_rate, self._settings.weight_decay, self._settings.epochs, steps
            )
            for epoch, value in optimise(network, loss, schedule):
                if after_epoch(head, epoch, value):
                    break
        return head

    def _loss(
        self, network: BlockNetwork, blocks: Sequence[TrainingBlock], rng: np.random.Generator
    ) -> tuple[Callable[[], torch.Tensor], int]:
        """Return the function that computes the loss of a step, and the number of steps of an epoch.

        An epoch sees each spot about once.
        """
        settings, device = self._settings, self._device
        inputs = [
            {**network.prepare_inputs(training.block), **network.prepare_targets(training)}
            for training in blocks
        ]
        targets = [torch.from_numpy(training.target) for training in blocks]
        rows = [np.flatnonzero(np.isfinite(training.target).any(axis=1)) for training in blocks]
        usable = [number for number, found in enumerate(rows) if len(found)]
        if not usable:
            raise HeadError("no training spot has both a valid embedding and a target; check the counts.")

        def block_loss(number: int) -> torch.Tensor:
            drawn = rows[number]
            if settings.spots_per_part is not None and settings.spots_per_part < len(drawn):
                drawn = rng.choice(drawn, settings.spots_per_part, replace=False)
            target = targets[number][drawn].to(device)
            return network.loss(to_device(inputs[number], device), torch.from_numpy(drawn).to(device), target)

        def loss() -> torch.Tensor:
            chosen = rng.choice(usable, min(settings.parts_per_step, len(usable)), replace=False)
            return torch.stack([block_loss(number) for number in chosen]).mean()

        spots = [len(rows[number]) for number in usable]
        spots_of_block = min(settings.spots_per_part or max(spots), sum(spots) / len(spots))
        spots_of_step = spots_of_block * min(settings.parts_per_step, len(usable))
        spots_of_epoch = min(sum(spots), settings.spots_per_epoch or LIMITS.epoch)
        return loss, max(_MIN_STEPS, round(spots_of_epoch / spots_of_step))

    def _training_blocks(
        self, slides: Sequence[HeadSlide], mean: Array, centred_in_slides: bool
    ) -> list[TrainingBlock]:
        found = []
        for slide, blocks in zip(slides, self._subsample_blocks(slides, _MAX_SPOTS), strict=True):
            coordinates = self._basis.coordinates(slide.targets)
            centre = training_mean([slide]) if centred_in_slides else mean
            offset = coordinates.of(centre)
            found += [TrainingBlock(block, coordinates.rows(block.rows) - offset) for block in blocks]
        return found

    def _subsample_blocks(self, slides: Sequence[HeadSlide], limit: int) -> list[list[SpotBlock]]:
        """Blocks of each slide, or every n-th of them where together they have more than `limit` spots."""
        by_slide = [self._blocks.setdefault(id(slide), split_into_blocks(slide)) for slide in slides]
        blocks = [block for of_slide in by_slide for block in of_slide]
        step = max(1, -(-sum(len(block) for block in blocks) // limit))
        chosen = {id(block) for block in blocks[::step]}
        return [[block for block in of_slide if id(block) in chosen] for of_slide in by_slide]

    def _score(self, head: NetworkHead, validation: Sequence[HeadSlide]) -> dict[str, float]:
        """Mean per-slide PCC and squared error on slides that were not fitted."""
        scores = []
        chosen = self._subsample_blocks(validation, LIMITS.validation)
        for slide, blocks in zip(validation, chosen, strict=True):
            rows = [block.rows for block in blocks]
            measured = slide.targets.dense(np.concatenate(rows), self._genes) if rows else np.zeros(0)
            if np.isfinite(measured).any():
                predicted = np.concatenate([head.predict_block(block, self._genes) for block in blocks])
                scores.append(slide_metrics(predicted, measured))
        if not scores:
            raise HeadError("no validation spot has a target to choose the number of epochs by.")
        return {
            "validation_pcc": float(np.mean([score.pcc for score in scores])),
            "validation_mse": float(np.mean([score.mse for score in scores])),
        }


def fit_network(
    name: str,
    make: Callable[[Sizes, Any], BlockNetwork],
    train: Sequence[HeadSlide],
    validation: Validation,
    settings: NetworkSettings,
    seed: int,
    progress: ProgressCallback,
) -> NetworkHead:
    """Choose the number of epochs on the validation slides or by inner folds, then fit all training slides.

    Where separate slides validate, the network of the best epoch is the result: it is not fitted again.
    """
    train = [slide for slide in train if slide.usable.any()]
    if not train:
        raise HeadError("no training spot has both a valid embedding and a target; check the counts.")
    fit = NetworkFit(make, train, settings, seed)
    trials = []
    for number, (fitted, validated) in enumerate(validation.folds):
        progress(f"{name}: fold {number + 1} of {len(validation.folds)}")
        trials.append(fit.trial(number, fitted, validated))
    history = [_mean_of(rows) for rows in zip(*(trial.curve for trial in trials), strict=True)]
    best = history.index(best_of(history))
    epochs = int(history[best]["epoch"])
    for trial in trials:
        trial.head.network.load_state_dict(trial.states[best], strict=False)
    if validation.refit:
        progress(f"{name}: final fit")
        head = fit.final(train, epochs)
        head.left_out = lambda: cross_fit(validation, lambda number: trials[number].head)
    else:
        head = trials[0].head
    head.history, head.chosen = history, {"epochs": epochs}
    return head


def _state_of(network: BlockNetwork) -> State:
    """A copy of the parameters."""
    return {k: v.clone() for k, v in network.state_dict().items() if not is_reference(k)}


def _mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def network_method(
    name: str,
    settings_type: type[NetworkSettings],
    make: Callable[[Sizes, Any], BlockNetwork],
    **others: Any,
) -> HeadMethod:
    """Make a head of a network.

    Parameters
    ----------
    name, settings_type
        See `HeadMethod`.
    make
        The network's class, or a function of (sizes, settings) that returns a network.
    others
        Further attributes of the `HeadMethod`. Its summary is by default the first line of the docstring of
        `make`.
    """

    def fit(
        train: Sequence[HeadSlide],
        validation: Validation,
        settings: Any,
        seed: int,
        progress: ProgressCallback,
    ) -> NetworkHead:
        return fit_network(name, make, train, validation, settings, seed, progress)

    def load(tensors: Tensors, settings: Any, shape: Shape) -> NetworkHead:
        return load_network(make, tensors, settings, shape)

    said = (make.__doc__ or "").strip().partition("\n")[0]
    return HeadMethod(name, settings_type, fit, load, **{"summary": said, **others})
