__all__ = ["Answers", "Viewer", "first_slide", "open_catalogue"]

from .answers import Answers
from .catalogue import first_slide, open_catalogue
from .server import Viewer
