__all__ = [
    "CoordinateOptions",
    "ImportReport",
    "ImportRequest",
    "import_features",
]

from .importing import ImportReport, import_features
from .jobs import ImportRequest
from .matching import CoordinateOptions
