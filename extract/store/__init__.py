"""The feature store: what is in it, reading, writing, locks and journals."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
