"""Image sources, choice of the training set, order of the examples, and the Lightning data module."""
