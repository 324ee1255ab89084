"""Fitting a network: epochs by validation slides or inner folds, then all slides; and a network as a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmap_st.errors import HeadError
from mmap_st.head.basis import fit_basis, judged_genes
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import LIMITS, HeadMethod, Shape, Tensors, Validation, best_of, cross_fit
from mmap_st.head.linear import training_mean
from mmap_st.head.networks.network import KEPT, NetworkSettings, PartNetwork, Sizes, TrainingPart
from mmap_st.head.networks.optimiser import Schedule, optimise, resolved_device, seeded
from mmap_st.head.networks.spot_blocks import Part, parts_of
from mmap_st.head.networks.trained_head import NetworkHead, load_network, moved
from mmap_st.head.scoring import slide_metrics

# Networks see whole parts of slides: fewer spots are kept than of heads that see them one by one.
_MOST_SPOTS = 51_200
_FEWEST_STEPS = 4
# An epoch of these many is judged: each needs a copy of the network until the best is known.
_JUDGED_EPOCHS = 5
# Seeds of folds lie apart, so that no two networks of a fit start alike.
_FOLDS_APART = 1_000

Array = NDArray[np.float32]
State = dict[str, torch.Tensor]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class _Trial:
    """One inner fold: what was fitted on it, and how it did after each judged epoch."""

    head: NetworkHead
    states: Sequence[State]
    curve: Sequence[dict[str, float]]


class NetworkFit:
    """The steps of one fit.

    Parameters
    ----------
    make
        Makes an untrained network of (sizes, settings).
    train
        Slides with targets.
    settings, seed
        Of the head.
    """

    def __init__(
        self,
        make: Callable[[Sizes, Any], PartNetwork],
        train: Sequence[HeadSlide],
        settings: NetworkSettings,
        seed: int,
    ) -> None:
        self._make, self._settings, self._seed = make, settings, seed
        self._device = resolved_device(settings.device)
        self._basis, self._genes = fit_basis(train, settings.rank), judged_genes(train)
        _, magnifications, width = train[0].embedding.shape
        token_width = 0 if train[0].tokens is None else train[0].grids.shape[3]
        self._sizes = Sizes(magnifications, width, self._basis.rank, token_width)
        # Slides are in several folds: what was read of them is kept.
        self._parts: dict[int, list[Part]] = {}

    def trial(self, number: int, fitted: Sequence[HeadSlide], judged: Sequence[HeadSlide]) -> _Trial:
        """Train without a fold, and judge on it every few epochs."""
        curve: list[dict[str, float]] = []
        states: list[State] = []
        every = max(1, self._settings.epochs // _JUDGED_EPOCHS)

        def judge(head: NetworkHead, epoch: int, loss: float) -> bool:
            if epoch % every == 0 or epoch == self._settings.epochs:
                curve.append({"epoch": float(epoch), "training_loss": loss, **self._score(head, judged)})
                states.append(_state_of(head.network))
            return False

        head = self._train(fitted, self._seed + _FOLDS_APART * (number + 1), judge)
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
        """Train until `after_epoch` says that it is enough."""
        slides = [slide for slide in slides if slide.usable.any()]
        with seeded(seed, self._device):
            network = self._make(self._sizes, self._settings).to(self._device)
            mean = training_mean(slides)
            parts = self._training_parts(slides, mean, network.centred_in_slides)
            network.remember(parts)
            loss, steps = self._loss(network, parts, np.random.default_rng(seed))
            head = NetworkHead(network, mean, self._basis, self._device)
            schedule = Schedule(
                self._settings.learning_rate, self._settings.weight_decay, self._settings.epochs, steps
            )
            for epoch, value in optimise(network, loss, schedule):
                if after_epoch(head, epoch, value):
                    break
        return head

    def _loss(
        self, network: PartNetwork, parts: Sequence[TrainingPart], rng: np.random.Generator
    ) -> tuple[Callable[[], torch.Tensor], int]:
        """What makes the loss of a step, and how many steps an epoch has: it sees each spot about once."""
        settings, device = self._settings, self._device
        seen = [{**network.see(training.part), **network.see_target(training)} for training in parts]
        targets = [torch.from_numpy(training.target) for training in parts]
        rows = [np.flatnonzero(np.isfinite(training.target).any(axis=1)) for training in parts]
        usable = [number for number, found in enumerate(rows) if len(found)]
        if not usable:
            raise HeadError("no training spot has both a valid embedding and a target; check the counts.")

        def of_part(number: int) -> torch.Tensor:
            wanted = rows[number]
            if settings.spots_per_part is not None and settings.spots_per_part < len(wanted):
                wanted = rng.choice(wanted, settings.spots_per_part, replace=False)
            target = targets[number][wanted].to(device)
            return network.loss(moved(seen[number], device), torch.from_numpy(wanted).to(device), target)

        def loss() -> torch.Tensor:
            chosen = rng.choice(usable, min(settings.parts_per_step, len(usable)), replace=False)
            return torch.stack([of_part(number) for number in chosen]).mean()

        spots = [len(rows[number]) for number in usable]
        of_a_part = min(settings.spots_per_part or max(spots), sum(spots) / len(spots))
        of_a_step = of_a_part * min(settings.parts_per_step, len(usable))
        of_an_epoch = min(sum(spots), settings.spots_per_epoch or LIMITS.epoch)
        return loss, max(_FEWEST_STEPS, round(of_an_epoch / of_a_step))

    def _training_parts(
        self, slides: Sequence[HeadSlide], mean: Array, centred_in_slides: bool
    ) -> list[TrainingPart]:
        found = []
        for slide, parts in zip(slides, self._some_parts(slides, _MOST_SPOTS), strict=True):
            coordinates = self._basis.coordinates(slide.targets)
            around = training_mean([slide]) if centred_in_slides else mean
            offset = coordinates.of(around)
            found += [TrainingPart(part, coordinates.rows(part.rows) - offset) for part in parts]
        return found

    def _some_parts(self, slides: Sequence[HeadSlide], most: int) -> list[list[Part]]:
        """Parts of each slide, or every n-th where together they have more than `most` spots."""
        parts = [self._parts.setdefault(id(slide), parts_of(slide)) for slide in slides]
        step = max(1, -(-sum(len(part) for of_slide in parts for part in of_slide) // most))
        kept = {id(part) for part in [part for of_slide in parts for part in of_slide][::step]}
        return [[part for part in of_slide if id(part) in kept] for of_slide in parts]

    def _score(self, head: NetworkHead, judged: Sequence[HeadSlide]) -> dict[str, float]:
        """Mean per-slide PCC and squared error on slides that were not fitted."""
        scores = []
        for slide, parts in zip(judged, self._some_parts(judged, LIMITS.judged), strict=True):
            rows = [part.rows for part in parts]
            measured = slide.targets.dense(np.concatenate(rows), self._genes) if rows else np.zeros(0)
            if np.isfinite(measured).any():
                predicted = np.concatenate([head.of_part(part, self._genes) for part in parts])
                scores.append(slide_metrics(predicted, measured))
        if not scores:
            raise HeadError("no validation spot has a target to choose the number of epochs by.")
        return {
            "validation_pcc": float(np.mean([score.pcc for score in scores])),
            "validation_mse": float(np.mean([score.mse for score in scores])),
        }


def fit_network(
    name: str,
    make: Callable[[Sizes, Any], PartNetwork],
    train: Sequence[HeadSlide],
    validation: Validation,
    settings: NetworkSettings,
    seed: int,
    tell: Tell,
) -> NetworkHead:
    """Choose the number of epochs on the validation slides, or by inner folds; then fit all training slides.

    Where other slides validate, the network is that of the best epoch, and is not fitted again.
    """
    train = [slide for slide in train if slide.usable.any()]
    if not train:
        raise HeadError("no training spot has both a valid embedding and a target; check the counts.")
    fit = NetworkFit(make, train, settings, seed)
    trials = []
    for number, (fitted, judged) in enumerate(validation.folds):
        tell(f"{name}: fold {number + 1} of {len(validation.folds)}")
        trials.append(fit.trial(number, fitted, judged))
    history = [_mean_of(rows) for rows in zip(*(trial.curve for trial in trials), strict=True)]
    best = history.index(best_of(history))
    epochs = int(history[best]["epoch"])
    for trial in trials:
        trial.head.network.load_state_dict(trial.states[best], strict=False)
    if validation.refit:
        tell(f"{name}: final fit")
        head = fit.final(train, epochs)
        head.left_out = lambda: cross_fit(validation, lambda number: trials[number].head)
    else:
        head = trials[0].head
    head.history, head.chosen = history, {"epochs": epochs}
    return head


def _state_of(network: PartNetwork) -> State:
    """A copy of what is learned."""
    return {
        k: v.clone() for k, v in network.state_dict().items() if not (k.startswith(KEPT) and "." not in k)
    }


def _mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def network_method(
    name: str,
    settings_type: type[NetworkSettings],
    make: Callable[[Sizes, Any], PartNetwork],
    **others: Any,
) -> HeadMethod:
    """A head of a network.

    Parameters
    ----------
    name, settings_type
        See `mmap_st.head.interface.HeadMethod`.
    make
        The network's class, or what makes one of (sizes, settings).
    others
        Further attributes of the method.
    """

    def fit(
        train: Sequence[HeadSlide],
        validation: Validation,
        settings: Any,
        seed: int,
        tell: Callable[[str], None],
    ) -> NetworkHead:
        return fit_network(name, make, train, validation, settings, seed, tell)

    def load(tensors: Tensors, settings: Any, shape: Shape) -> NetworkHead:
        return load_network(make, tensors, settings, shape)

    return HeadMethod(name, settings_type, fit, load, **others)
