"""One self-contained page from the files of a run: figures, tables, pictures. Imports neither torch nor Lightning."""
