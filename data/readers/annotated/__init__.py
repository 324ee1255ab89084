"""AnnData, from a file or in memory: which of its rows are spots, where they lie, which columns are genes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
