"""Slides: images of any kind, their scale, their tissue, and grids of spots on it."""
