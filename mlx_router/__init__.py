"""MLX Router."""
