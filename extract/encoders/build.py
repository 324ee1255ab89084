"""Build an encoder: the network, its weights, its device and its precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmap_st.errors import EncoderError, RequestError, first_line
from mmap_st.extract.encoders.encoder import HALVES, Encoder, autocast
from mmap_st.extract.encoders.networks import fold_batch_norms
from mmap_st.extract.encoders.spec import PRECISIONS, CustomModel, EncoderSpec, Rgb
from mmap_st.extract.encoders.weights import check_requirements, find_weights, get_weights
from mmap_st.extract.store import RANDOM

if TYPE_CHECKING:
    import torch

    from mmap_st.extract.encoders.networks import Embedder

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
    tokens: int = 0,
    trust_remote_code: bool = False,
) -> Encoder:
    """Build an encoder ready to embed.

    Parameters
    ----------
    spec
        What to build.
    weights
        File or folder of weights, in place of those that `weights.get_weights` finds or fetches.
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
    tokens
        Side g of a grid of patch tokens to give too; 0: none.
    trust_remote_code
        Run code that the encoder's hub repository carries.

    Raises
    ------
    EncoderError
        If the weights are missing or do not fit, or the network does not do what its spec says.
    RequestError
        If the device, precision or grid cannot be had.
    """
    import torch

    from mmap_st.extract.encoders.checkpoints import sha256_of_tensors
    from mmap_st.extract.encoders.networks import build_random, build_with_weights, own_failures

    if precision not in PRECISIONS:
        raise RequestError(f"There is no precision {precision!r}; give one of auto, {', '.join(PRECISIONS)}.")
    target = device_of(device)
    if weights is not None and random_weights:
        raise RequestError("Give --weights or --random-weights, not both.")
    if random_weights:
        model = build_random(spec)
        digest = f"{RANDOM} {sha256_of_tensors(model.state_dict())}"
    else:
        check_requirements(spec, trust_remote_code=trust_remote_code)
        brings_its_own = isinstance(spec.model, CustomModel) and spec.hub is None
        nowhere = weights is None and brings_its_own and find_weights(spec) is None
        path = None if nowhere else get_weights(spec, weights)
        model, digest = build_with_weights(spec, path)
    with own_failures(spec):
        model = fold_batch_norms(model, spec.input_px)
    if target != "cpu" and precision == "fp32":
        # fp32 means fp32: by default convolutions would take TF32, whose mantissa is that of fp16.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = model.to(target).to(memory_format=torch.channels_last)
    width, token_width = _measure(model, spec, tokens, target)
    model.grid = tokens
    if precision != "fp32":
        _keep_weights_in(model, HALVES[precision])
    step = _CPU_STEP if target == "cpu" else batch_size or _GPU_STEP
    network: torch.nn.Module = model
    if compiled:
        network = _compile(
            model, torch.zeros(step, 3, spec.input_px, spec.input_px, device=target), precision
        )

    def per_channel(values: Rgb) -> torch.Tensor:
        return torch.tensor(values, device=target).view(1, 3, 1, 1)

    return Encoder(
        spec=spec,
        weights_sha256=digest,
        precision=precision,
        device=target,
        width=width,
        tokens=tokens,
        token_width=token_width if tokens else 0,
        step=step,
        fixed_step=compiled or target == "cpu",
        compiled=compiled,
        _model=network,
        _mean=per_channel(spec.preprocessing.mean),
        _std=per_channel(spec.preprocessing.std),
    )


def _measure(model: Embedder, spec: EncoderSpec, tokens: int, device: str) -> tuple[int, int]:
    """Length of an embedding and of a token (0 where they are not requested), seen in a forward pass.

    Raises
    ------
    EncoderError
        If the network fails, or gives another length than its spec says.
    RequestError
        If it has no such grid of tokens.
    """
    import torch

    from mmap_st.extract.encoders.networks import grid_side, pool

    images = torch.zeros(1, 3, spec.input_px, spec.input_px, device=device)
    with torch.inference_mode():
        try:
            own, features = model.network(images, tokens > 0 or spec.pooling.kind not in ("own", "map"))
            embedding = pool(own, features, spec.pooling)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of many kinds: the network may be anyone's
            raise EncoderError(
                f"{spec.name} cannot embed a window of {spec.input_px} px"
                f" ({type(error).__name__}: {first_line(error)})."
            ) from error
    if embedding.ndim != 2 or (spec.width is not None and embedding.shape[1] != spec.width):
        raise EncoderError(
            f"{spec.name} should give {spec.width} numbers a window and gives {tuple(embedding.shape)[1:]};"
            " look at its pooling."
        )
    if not tokens:
        return int(embedding.shape[1]), 0
    side = 0 if features is None else grid_side(features, spec.pooling.prefix)
    if features is None or not side:
        raise RequestError(f"{spec.name} gives no grid of tokens here; leave out --tokens.")
    if tokens > side:
        raise RequestError(
            f"--tokens {tokens}: {spec.name} has {side} x {side} tokens a window; give {side} or fewer."
        )
    return int(embedding.shape[1]), int(features.shape[-1] if features.ndim == 3 else features.shape[1])


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
            f"torch cannot compile this network here ({first_line(error)}); leave out --compile."
        ) from error
    return compiled  # type: ignore[no-any-return]


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
