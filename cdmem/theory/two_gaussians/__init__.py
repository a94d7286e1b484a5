"""Two Gaussians in eight dimensions learned by a small network (Bonnaire et al. 2025, supplement, Fig. 9)."""
