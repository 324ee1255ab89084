"""Public data sets: what can be fetched, and fetching it so that an interrupted download goes on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
