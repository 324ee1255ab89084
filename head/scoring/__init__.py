"""How predictions are scored: metrics, statistics over patients, prediction intervals."""
