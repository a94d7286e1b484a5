"""Loggers: W&B, its workspace, and the local record."""
