"""Reading the windows of a slide: each tile decoded about once, for all magnifications and spots."""
