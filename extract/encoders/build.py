"""Build an encoder: the model, its weights, its device and its precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmap_st.errors import EncoderError, RequestError
from mmap_st.extract.encoders.fold import fold_batch_norms
from mmap_st.extract.encoders.registry import EFFICIENTNET_LITE0
from mmap_st.extract.encoders.spec import HALVES, PRECISIONS, Encoder, EncoderSpec, autocast
from mmap_st.extract.encoders.weights import (
    fit_state,
    lite0_weights,
    read_state,
    sha256_of_file,
    sha256_of_tensors,
)

if TYPE_CHECKING:
    import torch

_RANDOM_SEED = 0
#: On a CPU the network takes this many windows at a time, always: convolutions round differently with the
#: size of a batch, so one size makes embeddings independent of --batch-size; and small batches are faster
#: there, since activations stay in the caches (benchmarks/README.md).
_CPU_STEP = 4
_GPU_STEP = 256


def build_encoder(
    spec: EncoderSpec,
    *,
    weights: Path | None = None,
    random_weights: bool = False,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int | None = None,
    compiled: bool = False,
) -> Encoder:
    """Build an encoder ready to embed.

    Parameters
    ----------
    spec
        What to build.
    weights
        File of weights, in place of the encoder's own.
    random_weights
        Take random weights, the same each time: for tests of speed and plumbing.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``; auto takes a GPU where one answers.
    precision
        One of `PRECISIONS`.
    batch_size
        Windows that a GPU takes at a time; None: 256.
    compiled
        Let torch.compile make the network faster, which takes a while.

    Raises
    ------
    EncoderError
        If the weights are missing or do not fit.
    RequestError
        If the device or precision cannot be had.
    """
    import timm
    import torch

    if precision not in PRECISIONS:
        raise RequestError(f"There is no precision {precision!r}; give one of auto, {', '.join(PRECISIONS)}.")
    target = device_of(device)
    if weights is not None and random_weights:
        raise RequestError("Give --weights or --random-weights, not both.")
    path = weights
    if path is None and not random_weights:
        path = _own_weights(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        model: torch.nn.Module = timm.create_model(
            spec.arch, pretrained=False, num_classes=0, **spec.arch_kwargs
        )
    if path is None:
        digest = sha256_of_tensors(model.state_dict())
    else:
        fit_state(model, read_state(path), _classifier(model), path)
        digest = sha256_of_file(path)
    width = int(model.num_features)  # type: ignore[arg-type]
    if hasattr(model, "head_hidden_size"):
        width = int(model.head_hidden_size)  # type: ignore[arg-type]
    model = fold_batch_norms(model.eval().requires_grad_(False), spec.input_px)
    if target != "cpu" and precision == "fp32":
        # fp32 means fp32: by default convolutions would take TF32, whose mantissa is that of fp16.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = model.to(target).to(memory_format=torch.channels_last)
    if precision != "fp32":
        _keep_weights_in(model, HALVES[precision])
    step = _CPU_STEP if target == "cpu" else batch_size or _GPU_STEP
    if compiled:
        model = _compile(model, torch.zeros(step, 3, spec.input_px, spec.input_px, device=target), precision)

    def per_channel(values: tuple[float, float, float]) -> torch.Tensor:
        return torch.tensor(values, device=target).view(1, 3, 1, 1)

    return Encoder(
        spec=spec,
        weights_sha256=digest,
        precision=precision,
        device=target,
        width=width,
        step=step,
        fixed_step=compiled or target == "cpu",
        compiled=compiled,
        _model=model,
        _mean=per_channel(spec.mean),
        _std=per_channel(spec.std),
    )


def _keep_weights_in(model: torch.nn.Module, precision: str) -> None:
    """Round once what autocast would round in every forward pass: the weights of products, and no others."""
    import torch

    products = (torch.nn.Linear, torch.nn.Conv2d)
    for module in model.modules():
        if isinstance(module, products):
            module.to(getattr(torch, precision))


def _compile(model: torch.nn.Module, images: torch.Tensor, precision: str) -> torch.nn.Module:
    """Compile for one shape of input, now rather than with the first batch.

    Raises
    ------
    RequestError
        If torch cannot compile here.
    """
    import torch

    images = images.contiguous(memory_format=torch.channels_last)
    try:
        compiled: Any = torch.compile(model, dynamic=False)
        with torch.inference_mode(), autocast(images.device.type, precision):
            compiled(images)
    except Exception as error:  # of many kinds, by what is missing
        raise RequestError(
            f"torch cannot compile this network here ({str(error).strip().splitlines()[0]});"
            " leave out --compile."
        ) from error
    return compiled  # type: ignore[no-any-return]


def _own_weights(spec: EncoderSpec) -> Path:
    if spec.name == EFFICIENTNET_LITE0.name:
        return lite0_weights()
    raise EncoderError(f"{spec.name} needs --weights FILE, or --random-weights to try it without.")


def _classifier(model: torch.nn.Module) -> tuple[str, ...]:
    """Names of the layers that a checkpoint has and an encoder drops."""
    config = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def device_of(name: str) -> str:
    """The device that ``--device`` names; ``auto`` takes a GPU where one answers.

    Raises
    ------
    RequestError
        If it does not answer.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cpu":
            return "cpu"
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RequestError(f"The device {name!r} does not answer here; give cpu, cuda or mps.") from error
    return str(device)
