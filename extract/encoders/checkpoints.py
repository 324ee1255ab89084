"""Checkpoints: read safely, renamed to the network's own tensors, loaded strictly, named by their sha256."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
import hashlib
import pickle
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmap_st.data import some
from mmap_st.errors import EncoderError, counted, first_line
from mmap_st.extract.encoders.networks import TimmNetwork
from mmap_st.extract.encoders.spec import EncoderSpec, Model, TimmModel

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

    timm also resamples what has another size and drops what it does not know. That is not a renaming, so it
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


# What torch.load raises on files that are not checkpoints, or cut off.
_DAMAGED = (pickle.UnpicklingError, struct.error, RuntimeError, EOFError, OSError, ValueError, LookupError)
#: What torch's data-parallel training puts before every name.
_PARALLEL = "module."


def sha256_of_tensors(state: State) -> str:
    """Hex sha256 of a state dict: names, shapes and bytes, in order of name."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a .safetensors file, or from a .pth, .pt or .bin without running code in it.

    A table of tensors within one of `WRAPPERS` is taken out of it.

    Raises
    ------
    EncoderError
        If the file is missing, damaged, or holds anything but tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise EncoderError(f"The weights {path} do not exist; give a .safetensors or .pth file.")
    _refuse_no_weights(path)
    try:
        if path.suffix.lower() == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, *_DAMAGED) as error:
        # What torch says of files that hold more than tensors is long, and advises to run them.
        torchs = isinstance(error, RuntimeError) and "eights only" not in str(error)
        known = torchs or isinstance(error, OSError | SafetensorError)
        said = first_line(error) if known else "it is not a table of tensors, or is cut off"
        raise EncoderError(
            f"The weights {path} cannot be read ({said}); fetch the file again, or save the"
            " model's state_dict as .safetensors."
        ) from error
    if not _is_table(state) and isinstance(state, Mapping):
        state = next((state[key] for key in WRAPPERS if _is_table(state.get(key))), state)
    if not _is_table(state):
        raise EncoderError(
            f"The weights {path} are not a plain table of tensors; save the model's state_dict."
        )
    if all(key.startswith(_PARALLEL) for key in state):
        state = {key.removeprefix(_PARALLEL): tensor for key, tensor in state.items()}
    return dict(state)


def _refuse_no_weights(path: Path) -> None:
    """Say plainly what a download that went wrong has left."""
    with path.open("rb") as file:
        begins = file.read(64).lstrip().lower()
    if begins.startswith((b"<!doctype", b"<html", b"{")):
        raise EncoderError(f"The weights {path} are a page of text, not weights; fetch the file itself.")
    if begins.startswith(b"version https://git-lfs"):
        raise EncoderError(
            f"The weights {path} are a pointer of git-lfs; fetch the file itself (git lfs pull)."
        )


def _is_table(found: object) -> bool:
    import torch

    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in found.items())
    )


def fit_state(network: torch.nn.Module, state: State, spec: EncoderSpec, path: Path) -> None:
    """Load a published file's tensors into a network, strictly.

    Tensors that the encoder does without (`EncoderSpec.drops`) are left out. A file whose names do not fit is
    tried as timm converts it.

    Raises
    ------
    EncoderError
        If keys are missing or left over, or shapes differ; it lists them.
    """
    model: torch.nn.Module = getattr(network, "model", network)
    if spec.layout is not None:
        state = LAYOUTS[spec.layout](model, state)
    state = _without(state, spec, model)
    if state.keys() != model.state_dict().keys() and isinstance(network, TimmNetwork):
        converted = _without(as_timm_converts(model, state), spec, model)
        if converted.keys() == model.state_dict().keys():
            state = converted
    problems = _problems(model.state_dict(), state)
    if problems:
        first = {key.partition(".")[0] for key in state}
        if len(first) == 1 and {key.partition(".")[2] for key in state} == model.state_dict().keys():
            problems.append(f"all names begin with {first.pop()}.: remove that prefix")
        raise EncoderError(
            f"The weights {path} do not fit {spec.name}; {'; '.join(problems)}. Give weights of this encoder."
        )
    # A checkpoint in half precision is brought to the network's.
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})


def _without(state: State, spec: EncoderSpec, model: torch.nn.Module) -> State:
    base = f"{getattr(model, 'base_model_prefix', '')}."
    if len(base) > 1 and not any(key.startswith(base) for key in model.state_dict()):
        # transformers saves a model with a task's head under this name.
        state = {key.removeprefix(base): tensor for key, tensor in state.items()}
    heads = classifier_keys(spec.model)
    return {
        key: tensor
        for key, tensor in state.items()
        if key not in heads and not (spec.drops and key.startswith(spec.drops))
    }


def classifier_keys(wanted: Model) -> frozenset[str]:
    """Names of the tensors that a model of timm has with its classifier, and an encoder does without."""
    import timm
    import torch

    if not isinstance(wanted, TimmModel):
        return frozenset()
    with torch.device("meta"):
        whole = timm.create_model(wanted.arch, pretrained=False)
        encoder = timm.create_model(wanted.arch, pretrained=False, num_classes=0)
    return frozenset(whole.state_dict().keys() - encoder.state_dict().keys())


def _problems(own: State, state: State) -> list[str]:
    misshapen = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    return [
        f"{counted(len(keys), f'tensor {one}', f'tensors {many}')}: {some(sorted(keys))}"
        for keys, one, many in (
            (own.keys() - state.keys(), "is missing", "are missing"),
            (state.keys() - own.keys(), "is not the model's", "are not the model's"),
            (misshapen, "has another shape", "have another shape"),
        )
        if keys
    ]
