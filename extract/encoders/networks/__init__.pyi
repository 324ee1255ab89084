__all__ = [
    "Embedder",
    "TimmNetwork",
    "build_random",
    "build_with_weights",
    "grid_side",
    "own_failures",
    "pool",
]

from .builders import build_random, build_with_weights, own_failures
from .pooling import Embedder, TimmNetwork, grid_side, pool
