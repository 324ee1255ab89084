"""Cross-validation of heads: folds, jobs, what they add up to, and ablations."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
