"""Teacher against student."""
