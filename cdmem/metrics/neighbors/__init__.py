"""Nearest training images, exactly."""
