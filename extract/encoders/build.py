"""Build an encoder: the network, its weights, its device and its precision.

Batch normalisation is folded into the convolutions before it: a frozen network normalises with constants, so
both are one convolution with other weights (Jacob et al. 2018, arXiv 1712.05877, section 3.2). One pass over
every activation less: on a CPU that is a fifth of the time of an EfficientNet (benchmarks/README.md).
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmap_st.errors import EncoderError, RequestError, first_line
from mmap_st.extract.encoders.encoder import HALVES, Encoder, autocast
from mmap_st.extract.encoders.spec import PRECISIONS, CustomModel, EncoderSpec, Rgb
from mmap_st.extract.encoders.weights import check_requirements, find_weights, get_weights
from mmap_st.extract.store import RANDOM

if TYPE_CHECKING:
    import torch

    from mmap_st.extract.encoders.networks import Embedder


_LOG = logging.getLogger(__name__)
_LARGEST_DIFFERENCE = 1e-4
Network = TypeVar("Network", bound="torch.nn.Module")


def fold_batch_norms(model: Network, input_px: int) -> Network:
    """Return a model that computes the same with fewer steps; `model` itself where nothing can be folded.

    Which convolution feeds which normalisation is seen in a forward pass rather than guessed from names, and
    the folded model must agree with the whole one on that input before it takes its place.

    Parameters
    ----------
    model
        Network in evaluation mode, on the CPU, in float32; it is left as it is.
    input_px
        Side of its square RGB input, in pixels.
    """
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    if not any(_foldable(module) for module in model.modules()):
        return model
    probe = torch.rand(1, 3, input_px, input_px, generator=torch.Generator().manual_seed(0))
    folded = copy.deepcopy(model)
    with torch.inference_mode():
        expected = model(probe)
        pairs = _pairs(folded, probe)
    for convolution, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        convolution.weight, convolution.bias = weight, bias
    _replace(folded, {norm: _rest(norm) for _, norm in pairs})
    with torch.inference_mode():
        difference = float((folded(probe) - expected).norm() / expected.norm())
    # Written so that NaN is refused too.
    if not difference < _LARGEST_DIFFERENCE:
        _LOG.info("batch normalisation is not folded: embeddings would change by %.1e", difference)
        return model
    return folded.requires_grad_(False)


def _foldable(module: torch.nn.Module) -> bool:
    """Tell a normalisation by constants, of a class whose other steps are known."""
    import torch
    from timm.layers.norm_act import BatchNormAct2d

    return type(module) in (torch.nn.BatchNorm2d, BatchNormAct2d) and module.running_mean is not None


def _rest(norm: torch.nn.BatchNorm2d) -> torch.nn.Module:
    """What a normalisation does in addition."""
    import torch
    from timm.layers.norm_act import BatchNormAct2d

    if isinstance(norm, BatchNormAct2d):
        return torch.nn.Sequential(norm.drop, norm.act)
    return torch.nn.Identity()


def _pairs(model: torch.nn.Module, probe: torch.Tensor) -> list[tuple[torch.nn.Conv2d, torch.nn.BatchNorm2d]]:
    """Each convolution that feeds one normalisation, where both are used once in a forward pass."""
    import torch

    uses: dict[torch.nn.Module, int] = {}
    # The tensors are kept, so that no address is given twice.
    made: dict[int, tuple[torch.Tensor, torch.nn.Conv2d]] = {}
    pairs: list[tuple[torch.nn.Conv2d, torch.nn.BatchNorm2d]] = []

    def after_convolution(module: torch.nn.Conv2d, _: object, output: torch.Tensor) -> None:
        uses[module] = uses.get(module, 0) + 1
        made[id(output)] = (output, module)

    def before_norm(module: torch.nn.BatchNorm2d, inputs: tuple[torch.Tensor, ...]) -> None:
        uses[module] = uses.get(module, 0) + 1
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][1], module))

    hooks = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            hooks.append(module.register_forward_hook(after_convolution))
        elif _foldable(module):
            hooks.append(module.register_forward_pre_hook(before_norm))
    model(probe)
    for hook in hooks:
        hook.remove()
    return [(convolution, norm) for convolution, norm in pairs if uses[convolution] == uses[norm] == 1]


def _replace(model: torch.nn.Module, by: dict[torch.nn.BatchNorm2d, torch.nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in by:
                setattr(parent, name, by[child])


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
        raise RequestError(
            f"Device {name!r} is not available on this machine; give cpu, cuda or mps."
        ) from error
    return str(device)
