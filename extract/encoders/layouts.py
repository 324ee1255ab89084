"""Tensors of published files, under the names of the network that they are loaded into."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

State = Mapping[str, "torch.Tensor"]
#: What files have around the tensors: training code saves them so.
WRAPPERS = ("state_dict", "model", "module", "teacher")

#: Endings of tensors that networks make themselves, or need for training alone.
_CONSTANTS = ("mask_token", "attn_mask", "relative_position_index")
_LITE0_FIRST_KEY = "_conv_stem.weight"


def lite0(model: torch.nn.Module, state: State) -> State:
    """Name the tensors of the efficientnet-lite0 package as timm does: both list them in one order."""
    own = list(model.state_dict())
    tensors = [tensor for key, tensor in state.items() if not key.startswith("_fc.")]
    if _LITE0_FIRST_KEY not in state or len(own) != len(tensors):
        return state
    return dict(zip(own, tensors, strict=True))


def gpfm(model: torch.nn.Module, state: State) -> State:
    """Unwrap the file of GPFM's GitHub release; the hub's has timm's names already (encoders.csv, gpfm)."""
    found = {
        re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key.removeprefix("backbone.")): tensor
        for key, tensor in state.items()
    }
    return {k: v for k, v in found.items() if k != "mask_token" and not k.startswith("dino_head.")}


def keep(model: torch.nn.Module, state: State) -> State:
    """Take the picture tower of KEEP, whose layer scales are called weights."""
    tower = {k: v for k, v in state.items() if k.startswith(("visual.", "visual_head."))}
    return {re.sub(r"\.(ls[12])\.weight$", r".\1.gamma", k): v for k, v in tower.items()}


def as_timm_converts(model: torch.nn.Module, state: State) -> State:
    """What timm makes of layouts that it knows, such as DINOv2's and old Swins'; else `state` itself.

    timm also resamples what has another size and drops what it does not know. That is no renaming, so it
    does not count: every tensor must keep its size, positions apart from that of a class token.
    """
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        found: State = dict(convert(dict(state), model))
    except Exception:  # noqa: BLE001 - none of its layouts: what does not fit is listed then
        return state
    kept = [tensor for key, tensor in state.items() if not key.endswith(_CONSTANTS)]
    sizes = {tensor.numel() for tensor in kept}
    width = next((tensor.shape[-1] for key, tensor in found.items() if key == "pos_embed"), 0)
    same = all(
        tensor.numel() in sizes or (key == "pos_embed" and tensor.numel() + width in sizes)
        for key, tensor in found.items()
    )
    return found if same and len(found) == len(kept) else state


LAYOUTS: dict[str, Callable[[torch.nn.Module, State], State]] = {"lite0": lite0, "gpfm": gpfm, "keep": keep}
