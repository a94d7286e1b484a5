"""Teacher and student as LightningModules, their data, averages and checkpoints."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoint_callback": ["RunCheckpoint"],
        "datamodule": ["MemorizationDataModule"],
        "settings": ["Averaging", "Optimization", "Seeds"],
        "student": ["Student"],
        "teacher": ["DiffusionTeacher"],
    },
)
