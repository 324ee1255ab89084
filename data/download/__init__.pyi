__all__ = [
    "DATASETS",
    "KINDS",
    "DownloadReport",
    "download",
    "find_dataset",
    "list_samples",
]

from .datasets import DATASETS, KINDS, DownloadReport, find_dataset
from .hest import list_samples
from .run import download
