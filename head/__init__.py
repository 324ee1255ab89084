"""Heads: small trainable models from stored embeddings and prototypes to expression."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
