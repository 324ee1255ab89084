"""Maps and figures to look at."""
