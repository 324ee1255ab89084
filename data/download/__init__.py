"""Public data sets: what can be fetched, and fetching it so that an interrupted download goes on."""

from mmap_st.data.download.datasets import DATASETS, Dataset, RemoteFile, find_dataset

__all__ = ["DATASETS", "Dataset", "RemoteFile", "find_dataset"]
