"""Linear heads and their shared algebra: the training mean, ridge, and the trainer of the HEST-Benchmark."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
