__all__ = ["find_slides", "read_counts", "read_spots"]

from .bundle import find_slides
from .reader import read_counts, read_spots
