"""Readers of public layouts: each finds slides in a folder and reads their spots and counts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
