"""The head `mmap`: attention over a spot's magnifications and over its slide's prototypes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
