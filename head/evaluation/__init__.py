"""Cross-validation of heads: folds, jobs, what they add up to, and ablations."""
