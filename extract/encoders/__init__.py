"""Encoders: frozen image models with their exact preprocessing and pooling."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
