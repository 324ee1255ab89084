__all__ = ["MOST_VALUES", "PagedSlides", "SlideLayers", "write_page"]

from .page import MOST_VALUES, PagedSlides, write_page
from .slide_layers import SlideLayers
