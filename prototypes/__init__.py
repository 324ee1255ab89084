"""Prototypes: each slide summarised by the k-means centres of its own embeddings."""
