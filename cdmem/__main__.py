"""``python -m cdmem``."""

from cdmem.cli import main

if __name__ == "__main__":
    main()
