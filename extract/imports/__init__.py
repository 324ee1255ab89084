"""Embeddings made elsewhere, taken into a feature store: read a file, match its rows to spots, store them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
