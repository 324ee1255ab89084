"""The head `mmap`: attention over a spot's magnifications and over its slide's prototypes.

Fitted in two steps: ridge on fixed attention first, then learned attention on its residuals.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmap_st.head.basis import AUTO_RANK, fit_basis, fit_components, validation_genes
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import (
    LIMITS,
    HeadMethod,
    HeldOut,
    Limits,
    Validation,
    best_of,
    subsample_step,
)
from mmap_st.head.linear import mean_target, training_mean
from mmap_st.head.mmap.preparation import Preparation, PreparedSlide
from mmap_st.head.mmap.settings import MmapSettings
from mmap_st.head.mmap.strengths import nondecreasing
from mmap_st.head.mmap.trained_head import (
    MmapHead,
    SlideLevel,
    fit_slide_level,
    level_of,
    load_mmap,
    make_network,
    slide_descriptor,
)
from mmap_st.head.mmap.training import TrainingSlide, network_output, train_epochs
from mmap_st.head.mmap.trials import Trial, ValidationSpots, axis_errors
from mmap_st.head.networks import MmapNetwork, resolved_device, seeded
from mmap_st.head.scoring import slide_metrics
from mmap_st.progress import ProgressCallback

#: Strengths of ridge that are tried; the mean squared length of the features is 1.
ALPHAS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
#: Those that are tried for each axis; an axis of infinite strength is not fitted.
AXIS_ALPHAS = (0.1, *ALPHAS, float("inf"))
# Distances between the seeds of trials and of members, so that no two networks of a fit start alike.
_TRIAL_SEED_STEP, _MEMBER_SEED_STEP = 1_000, 1_000_000

Array = NDArray[np.float32]
Dense = NDArray[np.float64]


class MmapFit:
    """The steps of one fit; `mmap_st.head.mmap.fitting.fit_mmap` calls them in order."""

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
        self._components = fit_components(train, settings.components, ranks=settings.scaling == "ranks")
        self._basis, self._genes = fit_basis(train, _rank(settings, train)), validation_genes(train)
        preparation = Preparation(
            self._components,
            self._basis,
            self._device,
            limits,
            settings.library_power,
            centre=settings.centre,
        )
        self._row_fold = validation.row_folds(train)
        data = preparation.training(train, self._row_fold, limits.attention)
        self._train, self._ridge, self._scale = data.slides, data.ridge, data.scale
        self._folds = sorted({int(fold) for p in self._train for fold in p.fold})
        if validation.refit:
            self.trials = [self._trial((fold,), self._train) for fold in self._folds]
        else:
            validated = preparation.validation(validation.folds[0][1], limits.validation)
            self.trials = [self._trial((), validated)]
        self._refit = validation.refit
        self._curves: list[list[dict[str, float]]] = []
        # The network after each epoch of each trial: which epoch is used is known after all trials.
        self._states: list[list[dict[str, torch.Tensor]]] = []
        self._alpha: float | Dense | None = settings.alpha

    def choose_strength(self) -> None:
        """Choose the strength of ridge on the trials, unless it is given: one, or one for each axis."""
        if self._alpha is not None:
            return
        if self._settings.strengths == "axes":
            errors = np.sum(
                [
                    axis_errors(trial, [self._ridge_output(trial, alpha) for alpha in AXIS_ALPHAS])
                    for trial in self.trials
                ],
                axis=0,
            )
            # Folds that are parts of one slide do not see what another slide changes.
            stronger = int(self._refit and len(self._train) == 1)
            chosen = nondecreasing(errors) + stronger
            strengths = np.array(AXIS_ALPHAS)[np.minimum(chosen, len(AXIS_ALPHAS) - 1)]
            # Later axes are not fitted, and none of what follows needs them; one is left to be 0.
            rank = max(1, int(np.isfinite(strengths).sum()))
            self._basis, self._alpha = self._basis.first(rank), strengths
            return
        rows = []
        for alpha in ALPHAS:
            scores = [self._score(trial, self._ridge_output(trial, alpha)) for trial in self.trials]
            rows.append({"alpha": alpha, **_mean_of(scores)})
        self._alpha = best_of(rows)["alpha"]

    def try_epochs(self, number: int) -> None:
        """Train learned attention in a trial, and record its score after each epoch."""
        trial = self.trials[number]
        assert self._alpha is not None
        base = self._ridge_output(trial, self._alpha)
        curve = [{"epoch": 0.0, "training_loss": float("nan"), **self._score(trial, base)}]
        states: list[dict[str, torch.Tensor]] = [{}]
        slides = self._residual_targets(trial.without)
        tensors = [spots.tensors for spots in trial.validation]
        seed = self._seed + _TRIAL_SEED_STEP * (number + 1)
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
        slides = self._residual_targets(())
        networks = []
        for member in range(self._settings.members if epochs else 0):
            seed = self._seed + _MEMBER_SEED_STEP * (member + 1)
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
            self._weight(self._alpha),
            training_mean([p.slide for p in self._train]),
            self._basis,
            level,
            networks,
            self._settings.blend,
            self._device,
            self._held_out(epochs) if self._refit else (),
            history,
            {"alpha": _plain(self._alpha), "epochs": epochs, "level": chosen_level},
            self._settings.centre,
        )

    def _held_out(self, epochs: int) -> list[HeldOut]:
        """Predict the validation spots of each trial by what was fitted on the other folds."""
        assert self._alpha is not None
        found = []
        step = subsample_step(
            sum(len(spots.positions) for trial in self.trials for spots in trial.validation),
            self._basis.genes,
        )
        with seeded(self._seed, self._device):  # the network's initial weights are drawn, then replaced
            network = self._network()
            for number, trial in enumerate(self.trials):
                if epochs:
                    network.load_state_dict(self._states[number][epochs])
                outputs = self._ridge_output(trial, self._alpha)
                for spots, output in zip(trial.validation, outputs, strict=True):
                    if epochs:
                        output += np.float32(self._settings.blend) * network_output(network, spots.tensors)
                    added = self._basis.expression(self._within_slide(output)[::step])
                    predicted = trial.mean + spots.level + added
                    found.append(HeldOut(spots.prepared.slide, spots.rows[::step], predicted))
        return found

    def _network(self) -> MmapNetwork:
        return make_network(self._settings, self._components, self._basis.rank).to(self._device)

    def _epochs(
        self, network: MmapNetwork, slides: Sequence[TrainingSlide], seed: int
    ) -> Iterator[tuple[int, float]]:
        return train_epochs(network, slides, self._settings.training(), seed, self._limits.epoch)

    def _trial(self, without: tuple[int, ...], validated: Sequence[PreparedSlide]) -> Trial:
        fitted = [
            (p.slide.targets, p.slide.usable & ~np.isin(fold, without))
            for p, fold in zip(self._train, self._row_fold, strict=True)
        ]
        level, _ = self._fit_level(without)
        found = []
        step = max(1, -(-sum(len(p.rows) for p in validated) // self._limits.validation))
        for prepared in validated:
            positions = np.flatnonzero(np.isin(prepared.fold, without) | (prepared.fold < 0))[::step]
            if len(positions):
                targets = prepared.slide.targets
                measured = targets.dense(prepared.rows[positions], self._genes)
                found.append(
                    ValidationSpots(
                        prepared, positions, level_of(level, prepared.slide, targets.genes), measured
                    )
                )
        return Trial(without, mean_target(fitted), tuple(found))

    def _fit_level(self, without: Collection[int]) -> tuple[SlideLevel | None, dict[str, float]]:
        """Fit the levels of slides, on those that lie entirely in the other folds."""
        fitted = [p for p in self._train if not np.isin(p.fold, list(without)).any()]
        if not fitted or any(p.slide.centre is None for p in fitted):
            return None, {}
        mean = training_mean([p.slide for p in fitted])
        levels = np.stack([training_mean([p.slide]) - mean for p in fitted])
        for row, p in zip(levels, fitted, strict=True):
            row[~p.slide.targets.present] = 0.0
        descriptors = [slide_descriptor(p.slide.centre) for p in fitted if p.slide.centre is not None]
        return fit_slide_level(descriptors, levels, [int(p.fold[0]) for p in fitted])

    def _weight(self, alpha: float | Dense, without: Collection[int] = ()) -> Array:
        """(p, r) coefficients of ridge for the axes that are fitted."""
        return np.ascontiguousarray(self._ridge.weight(alpha, without)[:, : self._basis.rank])

    def _ridge_output(self, trial: Trial, alpha: float | Dense) -> list[Array]:
        """(k, r) output of ridge for the validation spots of a trial, one array for each slide."""
        weight = self._weight(alpha, trial.without)
        return [spots.prepared.scaled(spots.positions, self._scale) @ weight for spots in trial.validation]

    def _within_slide(self, output: Array) -> Array:
        """(k, r) output as a prediction has it: centred, unless the settings say otherwise."""
        return output - output.mean(axis=0) if self._settings.centre else output

    def _residual_targets(self, without: Collection[int]) -> list[TrainingSlide]:
        """Training data of learned attention: the residuals of ridge that was fitted without the spot's fold.

        Targets and the output of ridge are centred within each fold of a slide. Where only one fold is left,
        ridge is fitted on that fold itself.
        """
        assert self._alpha is not None
        folds = [fold for fold in self._folds if fold not in without]
        residuals = [np.full((len(p.rows), self._basis.rank), np.nan, np.float32) for p in self._train]
        for fold in folds:
            hidden = {*without, fold} if len(folds) > 1 else set(without)
            weight = self._weight(self._alpha, hidden)
            for values, prepared in zip(residuals, self._train, strict=True):
                positions = np.flatnonzero(prepared.fold == fold)
                if len(positions):
                    target = prepared.coordinates.rows(prepared.rows[positions])[:, : self._basis.rank]
                    output = prepared.scaled(positions, self._scale) @ weight
                    values[positions] = target - target.mean(axis=0) - (output - output.mean(axis=0))
        return [
            TrainingSlide(
                p.tensors,
                torch.from_numpy(values).to(self._device),
                np.flatnonzero(np.isfinite(values).any(axis=1)),
            )
            for p, values in zip(self._train, residuals, strict=True)
        ]

    def _score(self, trial: Trial, outputs: Sequence[Array]) -> dict[str, float]:
        """Mean per-slide PCC and squared error of the validation spots of a trial."""
        scores = []
        for spots, output in zip(trial.validation, outputs, strict=True):
            base = trial.mean[self._genes] + spots.level[self._genes]
            added = self._basis.expression(self._within_slide(output), self._genes)
            scores.append(slide_metrics(base + added, spots.measured))
        return _mean_of([{"validation_mse": s.mse, "validation_pcc": s.pcc} for s in scores])


def _rank(settings: MmapSettings, train: Sequence[HeadSlide]) -> int | None:
    """Axes to fit: those asked for; where each has its own strength, axes even of a small panel."""
    if settings.rank is not None or settings.strengths == "one" or settings.alpha is not None:
        return settings.rank
    return min(AUTO_RANK, train[0].targets.genes)


def _plain(alpha: float | Dense) -> float | list[float]:
    """Strengths as JSON has them, those of axes that are fitted."""
    return alpha if isinstance(alpha, float) else alpha[np.isfinite(alpha)].tolist()


def _mean_of(rows: Sequence[Any]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def fit_mmap(
    train: Sequence[HeadSlide],
    validation: Validation,
    settings: MmapSettings,
    seed: int,
    progress: ProgressCallback,
    limits: Limits = LIMITS,
) -> MmapHead:
    """Fit ridge on fixed attention, then learned attention on its residuals.

    The strength of ridge and the number of epochs are chosen on the validation slides, or by folds of the
    training slides; 0 epochs: ridge alone. Learned attention is trained on the residuals of spots that ridge
    was not fitted on.
    """
    progress("mmap: ridge on fixed attention")
    fit = MmapFit(train, validation, settings, seed, limits)
    fit.choose_strength()
    for number in range(len(fit.trials) if settings.blend else 0):
        progress(f"mmap: attention, fold {number + 1} of {len(fit.trials)}")
        fit.try_epochs(number)
    progress("mmap: final fit")
    return fit.finish()


MMAP = HeadMethod(
    "mmap",
    MmapSettings,
    fit_mmap,
    load_mmap,
    embeddings="scaled within each slide, as the setting scaling says",
    summary="attention over magnifications, neighbours and the slide's prototypes, on top of ridge",
)
