"""Fitting the `mmap` head: ridge on fixed attention first, then learned attention on what it leaves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmap_st.head.base import HeldOut, Validation
from mmap_st.head.choice import best_of
from mmap_st.head.closed_form import FoldedRidge, Rows
from mmap_st.head.components import Components, fit_components
from mmap_st.head.features import SlideFeatures, slide_features
from mmap_st.head.mean import training_mean
from mmap_st.head.metrics import slide_metrics
from mmap_st.head.mmap_head import MmapHead, block_scales, joined_blocks, level_of
from mmap_st.head.network import MmapNetwork
from mmap_st.head.slide_level import SlideLevel, fit_slide_level, slide_descriptor
from mmap_st.head.slides import HeadSlide
from mmap_st.head.training import SlideTensors, TrainingSlide, network_output, seeded, train_epochs

if TYPE_CHECKING:
    from mmap_st.head.mmap import MmapSettings

#: Strengths of ridge that are tried; features have a mean squared length of 1.
ALPHAS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
# Seeds of trials and members lie apart, so that no two networks of a fit start alike.
_TRIALS_APART, _MEMBERS_APART = 1_000, 1_000_000

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Prepared:
    """One slide with what is computed from it once.

    Attributes
    ----------
    slide, features
        The slide and its components.
    blocks
        (n, p) float32, input of ridge.
    tensors
        Input of the network.
    fold
        (n,) fold of each spot; -1 for slides that validate.
    """

    slide: HeadSlide
    features: SlideFeatures
    blocks: Array
    tensors: SlideTensors
    fold: NDArray[np.int64]

    @property
    def target(self) -> Array:
        """(n, G)."""
        assert self.slide.target is not None
        return self.slide.target


@dataclass(frozen=True)
class Trial:
    """A fit on some folds, judged on rows of other slides or folds.

    Attributes
    ----------
    without
        Folds that are not fitted.
    judged
        Slides and the rows of each.
    mean, level
        Training mean of the fitted rows, and the level of each judged slide, (G,) each.
    """

    without: tuple[int, ...]
    judged: tuple[tuple[Prepared, NDArray[np.int64]], ...]
    mean: Array
    level: tuple[Array, ...]


class MmapFit:
    """The steps of one fit; `mmap_st.head.mmap.fit_mmap` calls them in order."""

    def __init__(
        self, train: Sequence[HeadSlide], validation: Validation, settings: MmapSettings, seed: int
    ) -> None:
        self._settings, self._seed, self._device = settings, seed, settings.resolved_device()
        train = [slide for slide in train if slide.usable.any()]
        self._components = fit_components(train, settings.components)
        features = [slide_features(slide, self._components) for slide in train]
        self._scale = block_scales(features, [slide.usable for slide in train])
        folds = validation.row_folds(train)
        self._train = [self._prepare(s, f, fold) for s, f, fold in zip(train, features, folds, strict=True)]
        groups = [
            Rows(p.blocks[rows], p.target[rows], fold) for p in self._train for fold, rows in _by_fold(p)
        ]
        self._ridge = FoldedRidge(groups)
        self._folds = sorted({group.fold for group in groups})
        if validation.refit:
            self.trials = [self._trial((fold,), self._train) for fold in self._folds]
        else:
            judged = [
                self._prepare(s, slide_features(s, self._components), np.full(len(s), -1))
                for s in validation.folds[0][1]
            ]
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
            scores = []
            for trial in self.trials:
                weight = self._ridge.weight(alpha, trial.without)
                scores.append(self._score(trial, [p.blocks @ weight for p, _ in trial.judged]))
            rows.append({"alpha": alpha, **_mean_of(scores)})
        self._alpha = best_of(rows)["alpha"]

    def try_epochs(self, number: int) -> None:
        """Train learned attention on a trial's folds, and record how it does after each epoch."""
        trial = self.trials[number]
        assert self._alpha is not None
        weight = self._ridge.weight(self._alpha, trial.without)
        base = [p.blocks @ weight for p, _ in trial.judged]
        curve = [{"epoch": 0.0, "training_loss": float("nan"), **self._score(trial, base)}]
        states: list[dict[str, torch.Tensor]] = [{}]
        slides = self._left_to_explain(trial.without)
        seed = self._seed + _TRIALS_APART * (number + 1)
        with seeded(seed, self._device):
            network = self._network()
            for epoch, loss in train_epochs(network, slides, self._settings.training(), seed):
                added = [
                    b + self._settings.blend * network_output(network, p.tensors)
                    for b, (p, _) in zip(base, trial.judged, strict=True)
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
                for epoch, _ in train_epochs(network, slides, self._settings.training(), seed):
                    if epoch == epochs:
                        break
            networks.append(network)
        level, chosen_level = self._fit_level(())
        return MmapHead(
            self._components,
            self._scale,
            self._ridge.weight(self._alpha),
            training_mean([p.slide for p in self._train]),
            level,
            networks,
            self._settings.blend,
            self._device,
            self._held_out(epochs) if self._refit else (),
            history,
            {"alpha": self._alpha, "epochs": epochs, "level": chosen_level},
        )

    def _held_out(self, epochs: int) -> list[HeldOut]:
        """Predictions of each trial's judged rows, by what was fitted on the others."""
        assert self._alpha is not None
        found = []
        for number, trial in enumerate(self.trials):
            weight = self._ridge.weight(self._alpha, trial.without)
            network = self._network()
            if epochs:
                network.load_state_dict(self._states[number][epochs])
            for (prepared, rows), level in zip(trial.judged, trial.level, strict=True):
                predicted = trial.mean + level + prepared.blocks[rows] @ weight
                if epochs:
                    added = network_output(network, prepared.tensors)[rows]
                    predicted += np.float32(self._settings.blend) * added
                found.append(HeldOut(prepared.slide, rows, predicted.astype(np.float32)))
        return found

    def _prepare(self, slide: HeadSlide, features: SlideFeatures, fold: NDArray[np.int64]) -> Prepared:
        tensors = SlideTensors.of(features, self._device)
        return Prepared(slide, features, joined_blocks(features, self._scale), tensors, fold)

    def _network(self) -> MmapNetwork:
        return make_network(self._settings, self._components, self._train[0].target.shape[1]).to(self._device)

    def _trial(self, without: tuple[int, ...], judged: Sequence[Prepared]) -> Trial:
        kept = [p.slide.rows(~np.isin(p.fold, without)) for p in self._train]
        level, _ = self._fit_level(without)
        pairs = []
        for prepared in judged:
            rows = prepared.slide.usable & (np.isin(prepared.fold, without) | (prepared.fold < 0))
            if rows.any():
                pairs.append((prepared, np.flatnonzero(rows)))
        levels = tuple(level_of(level, p.slide, p.target.shape[1]) for p, _ in pairs)
        return Trial(without, tuple(pairs), training_mean(kept), levels)

    def _fit_level(self, without: Collection[int]) -> tuple[SlideLevel | None, dict[str, float]]:
        """Levels of slides, fitted on those that lie whole in other folds."""
        fitted = [p for p in self._train if not np.isin(p.fold, list(without)).any()]
        if not fitted or any(p.slide.centre is None for p in fitted):
            return None, {}
        mean = training_mean([p.slide for p in fitted])
        levels = np.stack([np.nan_to_num(training_mean([p.slide]) - mean) for p in fitted])
        for row, p in zip(levels, fitted, strict=True):
            row[~np.isfinite(p.target).any(axis=0)] = 0.0
        descriptors = [slide_descriptor(p.slide.centre) for p in fitted if p.slide.centre is not None]
        return fit_slide_level(descriptors, levels, [int(p.fold[0]) for p in fitted])

    def _left_to_explain(self, without: Collection[int]) -> list[TrainingSlide]:
        """What ridge leaves of each spot's difference from its slide, by ridge that did not see its fold.

        Where only one fold is left, ridge is fitted on it all the same.
        """
        assert self._alpha is not None
        kept = [fold for fold in self._folds if fold not in without]
        left = [np.full_like(p.target, np.nan) for p in self._train]
        for fold in kept:
            hidden = {*without, fold} if len(kept) > 1 else set(without)
            weight = self._ridge.weight(self._alpha, hidden)
            for values, prepared in zip(left, self._train, strict=True):
                rows = np.flatnonzero(prepared.slide.usable & (prepared.fold == fold))
                if len(rows):
                    target = prepared.target[rows]
                    explained = prepared.blocks[rows] @ weight
                    values[rows] = target - target.mean(axis=0) - (explained - explained.mean(axis=0))
        return [
            TrainingSlide(
                p.tensors,
                torch.from_numpy(values).to(self._device),
                np.flatnonzero(np.isfinite(values).any(axis=1)),
            )
            for p, values in zip(self._train, left, strict=True)
        ]

    def _score(self, trial: Trial, outputs: Sequence[Array]) -> dict[str, float]:
        """Mean per-slide PCC and squared error of a trial's judged rows."""
        scores = [
            slide_metrics(trial.mean + level + output[rows], prepared.target[rows])
            for (prepared, rows), output, level in zip(trial.judged, outputs, trial.level, strict=True)
        ]
        return _mean_of([{"validation_mse": s["mse"], "validation_pcc": s["pcc"]} for s in scores])


def make_network(settings: MmapSettings, components: Components, genes: int) -> MmapNetwork:
    """An untrained network whose output is 0."""
    magnifications, _, count = components.axes.shape
    network = MmapNetwork(
        2 * magnifications,
        count,
        genes,
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


def _by_fold(prepared: Prepared) -> list[tuple[int, NDArray[np.int64]]]:
    """The usable rows of each fold that a slide has."""
    usable = prepared.slide.usable
    folds = np.unique(prepared.fold[usable])
    return [(int(fold), np.flatnonzero(usable & (prepared.fold == fold))) for fold in folds]


def _mean_of(rows: Sequence[Any]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
