"""Models of mlx-vlm: what they see is prefilled image by image, then decoded like any text."""
