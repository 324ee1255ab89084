"""The head `mmap`: attention over a spot's magnifications and over its slide's prototypes."""
