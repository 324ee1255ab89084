"""mmap_st: spatial gene expression from H&E slides."""

from mmap_st import _moved

__version__ = "0.1.0"

_moved.install()
