"""The mathematics of diffusion and consistency: noise levels, preconditioning, solvers, losses, samplers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"losses": ["Distance", "L1", "L2", "PseudoHuber"]}
)
