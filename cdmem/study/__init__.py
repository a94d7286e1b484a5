"""One stage, a study, a sweep."""
