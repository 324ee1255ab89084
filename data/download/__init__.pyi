__all__ = [
    "DATASETS",
    "KINDS",
    "DownloadReport",
    "DownloadRequest",
    "download",
    "find_dataset",
]

from .datasets import DATASETS, KINDS, find_dataset
from .run import DownloadReport, DownloadRequest, download
