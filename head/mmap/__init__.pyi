__all__ = [
    "MMAP",
    "MmapSettings",
]

from .fitting import MMAP
from .settings import MmapSettings
