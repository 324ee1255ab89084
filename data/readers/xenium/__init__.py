"""Xenium: an in-situ section and its aligned H&E, binned to pseudo-spots."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
