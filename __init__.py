"""mmap_st: spatial gene expression from H&E slides.

``import mmap_st as mm`` is fast: what a name needs is imported when it is first used.
"""

import lazy_loader

from mmap_st import _moved

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_moved.install()
