"""What ``mlx-router doctor`` looks at: ``machine``, and ``setup``, which is what it is told."""
