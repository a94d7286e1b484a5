"""cdmem: does consistency distillation keep or shed a diffusion teacher's memorised training images?

Importing this package is light: torch and Lightning are imported by the subcommand that needs them.
"""

__version__ = "0.1.0"
