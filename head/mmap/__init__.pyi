__all__ = ["MMAP", "MmapSettings"]

from .method import MMAP
from .settings import MmapSettings
