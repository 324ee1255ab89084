"""Reading the windows of a slide: each tile decoded about once, for all magnifications and spots."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
