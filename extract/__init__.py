"""Slides, windows, encoders and the feature store: from pictures to embeddings."""
