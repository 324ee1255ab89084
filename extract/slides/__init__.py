"""Slides: images of any kind, their scale, their tissue, and grids of spots on it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
