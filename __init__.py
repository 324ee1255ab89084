"""mmap_st: spatial gene expression from H&E slides."""

__version__ = "0.1.0"
