"""Target and initial noise within sampling trajectories (after Kim et al. 2025, arXiv 2509.25705)."""
