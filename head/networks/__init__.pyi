__all__ = [
    "BlockNetwork",
    "Inputs",
    "MmapNetwork",
    "NetworkSettings",
    "Schedule",
    "Sizes",
    "SpotBlock",
    "TrainingBlock",
    "check_at_least",
    "check_device",
    "check_multiple",
    "contrastive_similarity",
    "masked_mse",
    "network_method",
    "optimise",
    "output_layer",
    "reduced_tokens",
    "resolved_device",
    "seeded",
    "tensor",
    "token_axes",
]

from .attention import MmapNetwork, contrastive_similarity, masked_mse
from .fitting import network_method
from .network import (
    BlockNetwork,
    Inputs,
    NetworkSettings,
    Sizes,
    SpotBlock,
    TrainingBlock,
    check_at_least,
    check_multiple,
    output_layer,
    reduced_tokens,
    tensor,
    token_axes,
)
from .optimiser import Schedule, check_device, optimise, resolved_device, seeded
