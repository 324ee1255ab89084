"""Linear heads and their shared algebra: the training mean, ridge, and the trainer of the HEST-Benchmark."""
