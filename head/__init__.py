"""Heads: small trainable models from stored embeddings and prototypes to expression."""
