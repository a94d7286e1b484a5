"""What is reproduced."""
