"""Embeddings made elsewhere, taken into a feature store: read a file, match its rows to spots, store them."""
