"""`mmap compare`: encoders, heads and sets of magnifications on the same folds."""
