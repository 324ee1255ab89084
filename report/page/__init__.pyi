__all__ = [
    "DIFFERENCES",
    "MOST_VALUES",
    "Charts",
    "PagedSlides",
    "SlideLayers",
    "SlidePrototypes",
    "find_prototypes",
    "write_page",
]

from .maps import DIFFERENCES
from .page import MOST_VALUES, Charts, PagedSlides, write_page
from .slide_layers import SlideLayers
from .slide_prototypes import SlidePrototypes, find_prototypes
