"""Which precision ``auto`` means."""

from __future__ import annotations

from pathlib import Path

from mmap_st.extract.encoders.spec import EncoderSpec

_CPU_FLAGS = Path("/proc/cpuinfo")
#: The first NVIDIA cards whose matrix units know bfloat16 (Ampere).
_FIRST_WITH_BF16 = (8, 0)


def auto_precision(spec: EncoderSpec, device: str, stored: str | None) -> str:
    """The precision to take where the user names none.

    Parameters
    ----------
    spec
        The encoder; what it recommends is taken where the device is fast at half precision.
    device
        As torch names it.
    stored
        Of what the store has of this encoder, which always comes first: one store, one recipe.
    """
    if stored is not None:
        return stored
    if not is_fast_at_bf16(device):
        return "fp32"
    recommended = spec.precision or "bf16"
    # Matrix units of CPUs know bf16; fp16 would be slow there.
    return "bf16" if device == "cpu" and recommended == "fp16" else recommended


def is_fast_at_bf16(device: str) -> bool:
    """Whether a device has matrix units for bfloat16: an NVIDIA card since Ampere, a CPU with AMX."""
    kind = device.split(":")[0]
    if kind == "cuda":
        import torch

        return torch.cuda.get_device_capability(device) >= _FIRST_WITH_BF16
    if kind == "cpu":
        try:
            return "amx_bf16" in _CPU_FLAGS.read_text().split()
        except OSError:
            return False
    return False
