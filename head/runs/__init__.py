"""One run of one head: what was asked for, fitting, the run folder, predictions."""
