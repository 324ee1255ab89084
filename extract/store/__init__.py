"""The feature store: what is in it, reading, writing, locks and journals."""
