"""The audit: what a generator reproduces of a training set."""
