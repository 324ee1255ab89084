"""Several encoders in one head: a fit for each, and the weighted mean of their predictions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
