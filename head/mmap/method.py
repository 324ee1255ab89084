"""The head `mmap`: attention over a spot's magnifications and over its slide's prototypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmap_st.errors import HeadError, first_line
from mmap_st.head.basis import Basis, Components
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import LIMITS, HeadMethod, Limits, Shape, Tensors, Validation
from mmap_st.head.mmap.fitting import MmapFit, make_network
from mmap_st.head.mmap.settings import MmapSettings
from mmap_st.head.mmap.trained_head import MmapHead, SlideLevel
from mmap_st.progress import ProgressCallback


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


def load_mmap(tensors: Tensors, settings: MmapSettings, shape: Shape) -> MmapHead:
    """Load a trained head from its tensors.

    Raises
    ------
    HeadError
        If the tensors do not fit the head.
    """
    try:
        level = {k.removeprefix("level."): v for k, v in tensors.items() if k.startswith("level.")}
        components = Components(tensors["components"])
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
        )
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise HeadError(f"The saved weights do not fit the head: {first_line(error)}") from error


MMAP = HeadMethod("mmap", MmapSettings, fit_mmap, load_mmap)
