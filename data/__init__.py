"""Cohorts, spots, counts, panels and splits: everything that is not an image or an embedding."""
