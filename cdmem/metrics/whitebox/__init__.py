"""What a model's own losses and scores give away."""
