"""Diffusion: noise levels, preconditioning, solvers, losses, samplers, exact denoisers."""
