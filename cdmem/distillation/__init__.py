"""Ways to make a student from a teacher: one file a method."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["DistillationMethod"],
        "consistency": ["ConsistencyDistillation", "ConsistencyTraining"],
        "regression": ["TrajectoryRegression"],
    },
)
