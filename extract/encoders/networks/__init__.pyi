__all__ = [
    "Embedder",
    "TimmNetwork",
    "build_random",
    "build_with_weights",
    "fold_batch_norms",
    "grid_side",
    "own_failures",
    "pool",
]

from .batchnorm_fusion import fold_batch_norms
from .builders import build_random, build_with_weights, own_failures
from .pooling import Embedder, TimmNetwork, grid_side, pool
