"""Fitting the `mmap` head: ridge on fixed attention first, then learned attention on what it leaves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmap_st.head.basis import Components, fit_basis, fit_components, judged_genes
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import LIMITS, HeldOut, Limits, Validation, best_of, thinned
from mmap_st.head.linear import mean_target, training_mean
from mmap_st.head.mmap.preparation import Preparation, Prepared
from mmap_st.head.mmap.settings import MmapSettings
from mmap_st.head.mmap.trained_head import MmapHead, SlideLevel, fit_slide_level, level_of, slide_descriptor
from mmap_st.head.mmap.training import SlideTensors, TrainingSlide, network_output, train_epochs
from mmap_st.head.networks import MmapNetwork, resolved_device, seeded
from mmap_st.head.scoring import slide_metrics

#: Strengths of ridge that are tried; features have a mean squared length of 1.
ALPHAS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
# Seeds of trials and members lie apart, so that no two networks of a fit start alike.
_TRIALS_APART, _MEMBERS_APART = 1_000, 1_000_000

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Judged:
    """Kept spots of one slide that a trial is judged on.

    Attributes
    ----------
    prepared, positions
        The slide, and which of its kept spots.
    level
        (G,) of the slide, fitted as the trial is.
    measured
        (k, g) targets of the genes that choices are made by.
    """

    prepared: Prepared
    positions: NDArray[np.int64]
    level: Array
    measured: Array

    @property
    def tensors(self) -> SlideTensors:
        """Input of the network."""
        return self.prepared.tensors.rows(torch.from_numpy(self.positions))


@dataclass(frozen=True)
class Trial:
    """A fit on some folds, judged on spots of other slides or folds.

    Attributes
    ----------
    without
        Folds that are not fitted.
    mean
        (G,) training mean of the fitted spots.
    judged
        What it is judged on, slide by slide.
    """

    without: tuple[int, ...]
    mean: Array
    judged: tuple[Judged, ...]


class MmapFit:
    """The steps of one fit; `mmap_st.head.mmap.method.fit_mmap` calls them in order."""

    def __init__(
        self,
        train: Sequence[HeadSlide],
        validation: Validation,
        settings: MmapSettings,
        seed: int,
        limits: Limits = LIMITS,
    ) -> None:
        self._settings, self._seed, self._device = settings, seed, resolved_device(settings.device)
        self._limits = limits
        train = [slide for slide in train if slide.usable.any()]
        self._components = fit_components(train, settings.components)
        self._basis, self._genes = fit_basis(train, settings.rank), judged_genes(train)
        preparation = Preparation(self._components, self._basis, self._device, limits)
        self._row_fold = validation.row_folds(train)
        self._train, self._ridge, self._scale = preparation.train(train, self._row_fold, limits.attention)
        self._folds = sorted({int(fold) for p in self._train for fold in p.fold})
        if validation.refit:
            self.trials = [self._trial((fold,), self._train) for fold in self._folds]
        else:
            judged = preparation.judge(validation.folds[0][1], limits.judged)
            self.trials = [self._trial((), judged)]
        self._refit = validation.refit
        self._curves: list[list[dict[str, float]]] = []
        # Of each trial, the network after each epoch: which is used is known only when all have run.
        self._states: list[list[dict[str, torch.Tensor]]] = []
        self._alpha = settings.alpha

    def choose_strength(self) -> None:
        """Settle the strength of ridge, on the trials."""
        if self._alpha is not None:
            return
        rows = []
        for alpha in ALPHAS:
            scores = [self._score(trial, self._explained(trial, alpha)) for trial in self.trials]
            rows.append({"alpha": alpha, **_mean_of(scores)})
        self._alpha = best_of(rows)["alpha"]

    def try_epochs(self, number: int) -> None:
        """Train learned attention on a trial's folds, and record how it does after each epoch."""
        trial = self.trials[number]
        assert self._alpha is not None
        base = self._explained(trial, self._alpha)
        curve = [{"epoch": 0.0, "training_loss": float("nan"), **self._score(trial, base)}]
        states: list[dict[str, torch.Tensor]] = [{}]
        slides = self._left_to_explain(trial.without)
        tensors = [judged.tensors for judged in trial.judged]
        seed = self._seed + _TRIALS_APART * (number + 1)
        with seeded(seed, self._device):
            network = self._network()
            for epoch, loss in self._epochs(network, slides, seed):
                added = [
                    b + self._settings.blend * network_output(network, inputs)
                    for b, inputs in zip(base, tensors, strict=True)
                ]
                curve.append({"epoch": float(epoch), "training_loss": loss, **self._score(trial, added)})
                states.append({key: value.clone() for key, value in network.state_dict().items()})
        self._curves.append(curve)
        self._states.append(states)

    def finish(self) -> MmapHead:
        """Fit all training slides with what was chosen."""
        assert self._alpha is not None
        steps = zip(*self._curves, strict=True)
        history = [_mean_of(scores) for scores in steps]
        epochs = int(best_of(history)["epoch"]) if history else 0
        slides = self._left_to_explain(())
        networks = []
        for member in range(self._settings.members if epochs else 0):
            seed = self._seed + _MEMBERS_APART * (member + 1)
            with seeded(seed, self._device):
                network = self._network()
                for epoch, _ in self._epochs(network, slides, seed):
                    if epoch == epochs:
                        break
            networks.append(network)
        level, chosen_level = self._fit_level(())
        return MmapHead(
            self._components,
            self._scale,
            self._ridge.weight(self._alpha),
            training_mean([p.slide for p in self._train]),
            self._basis,
            level,
            networks,
            self._settings.blend,
            self._device,
            self._held_out(epochs) if self._refit else (),
            history,
            {"alpha": self._alpha, "epochs": epochs, "level": chosen_level},
        )

    def _held_out(self, epochs: int) -> list[HeldOut]:
        """Predictions of spots that each trial is judged on, by what was fitted on the others."""
        assert self._alpha is not None
        found = []
        step = thinned(
            sum(len(j.positions) for trial in self.trials for j in trial.judged), self._basis.genes
        )
        with seeded(self._seed, self._device):  # the network's first weights are drawn, and replaced
            network = self._network()
            for number, trial in enumerate(self.trials):
                if epochs:
                    network.load_state_dict(self._states[number][epochs])
                for judged, output in zip(trial.judged, self._explained(trial, self._alpha), strict=True):
                    if epochs:
                        output += np.float32(self._settings.blend) * network_output(network, judged.tensors)
                    predicted = trial.mean + judged.level + self._basis.expression(output[::step])
                    rows = judged.prepared.rows[judged.positions[::step]]
                    found.append(HeldOut(judged.prepared.slide, rows, predicted))
        return found

    def _network(self) -> MmapNetwork:
        return make_network(self._settings, self._components, self._basis.rank).to(self._device)

    def _epochs(
        self, network: MmapNetwork, slides: Sequence[TrainingSlide], seed: int
    ) -> Iterator[tuple[int, float]]:
        return train_epochs(network, slides, self._settings.training(), seed, self._limits.epoch)

    def _trial(self, without: tuple[int, ...], judged: Sequence[Prepared]) -> Trial:
        fitted = [
            (p.slide.targets, p.slide.usable & ~np.isin(fold, without))
            for p, fold in zip(self._train, self._row_fold, strict=True)
        ]
        level, _ = self._fit_level(without)
        found = []
        step = max(1, -(-sum(len(p.rows) for p in judged) // self._limits.judged))
        for prepared in judged:
            positions = np.flatnonzero(np.isin(prepared.fold, without) | (prepared.fold < 0))[::step]
            if len(positions):
                targets = prepared.slide.targets
                measured = targets.dense(prepared.rows[positions], self._genes)
                found.append(
                    Judged(prepared, positions, level_of(level, prepared.slide, targets.genes), measured)
                )
        return Trial(without, mean_target(fitted), tuple(found))

    def _fit_level(self, without: Collection[int]) -> tuple[SlideLevel | None, dict[str, float]]:
        """Levels of slides, fitted on those that lie whole in other folds."""
        fitted = [p for p in self._train if not np.isin(p.fold, list(without)).any()]
        if not fitted or any(p.slide.centre is None for p in fitted):
            return None, {}
        mean = training_mean([p.slide for p in fitted])
        levels = np.stack([training_mean([p.slide]) - mean for p in fitted])
        for row, p in zip(levels, fitted, strict=True):
            row[~p.slide.targets.present] = 0.0
        descriptors = [slide_descriptor(p.slide.centre) for p in fitted if p.slide.centre is not None]
        return fit_slide_level(descriptors, levels, [int(p.fold[0]) for p in fitted])

    def _explained(self, trial: Trial, alpha: float) -> list[Array]:
        """(k, r) what ridge says of the spots that a trial is judged on."""
        weight = self._ridge.weight(alpha, trial.without)
        return [judged.prepared.scaled(judged.positions, self._scale) @ weight for judged in trial.judged]

    def _left_to_explain(self, without: Collection[int]) -> list[TrainingSlide]:
        """What ridge leaves of each spot's difference from its slide, by ridge that did not see its fold.

        Where only one fold is left, ridge is fitted on it all the same.
        """
        assert self._alpha is not None
        kept = [fold for fold in self._folds if fold not in without]
        left = [np.full((len(p.rows), self._basis.rank), np.nan, np.float32) for p in self._train]
        for fold in kept:
            hidden = {*without, fold} if len(kept) > 1 else set(without)
            weight = self._ridge.weight(self._alpha, hidden)
            for values, prepared in zip(left, self._train, strict=True):
                positions = np.flatnonzero(prepared.fold == fold)
                if len(positions):
                    target = prepared.coordinates.rows(prepared.rows[positions])
                    explained = prepared.scaled(positions, self._scale) @ weight
                    values[positions] = target - target.mean(axis=0) - (explained - explained.mean(axis=0))
        return [
            TrainingSlide(
                p.tensors,
                torch.from_numpy(values).to(self._device),
                np.flatnonzero(np.isfinite(values).any(axis=1)),
            )
            for p, values in zip(self._train, left, strict=True)
        ]

    def _score(self, trial: Trial, outputs: Sequence[Array]) -> dict[str, float]:
        """Mean per-slide PCC and squared error of the spots that a trial is judged on."""
        scores = []
        for judged, output in zip(trial.judged, outputs, strict=True):
            base = trial.mean[self._genes] + judged.level[self._genes]
            scores.append(slide_metrics(base + self._basis.expression(output, self._genes), judged.measured))
        return _mean_of([{"validation_mse": s.mse, "validation_pcc": s.pcc} for s in scores])


def make_network(settings: MmapSettings, components: Components, outputs: int) -> MmapNetwork:
    """An untrained network whose output is 0."""
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


def _mean_of(rows: Sequence[Any]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
