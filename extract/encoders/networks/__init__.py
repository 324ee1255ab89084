"""Networks of encoders: built by timm, by transformers or by their authors, with their pooling."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
