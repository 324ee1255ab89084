"""What crosses layers: from slides to predictions, and the demo."""
