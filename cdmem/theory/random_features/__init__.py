"""The random-feature network of Bonnaire et al. 2025 (arXiv 2505.17638), exactly: spectrum, training, distillation."""
