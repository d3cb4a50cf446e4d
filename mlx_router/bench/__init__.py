"""What ``mlx-router bench`` measures: a user's own models, in this process or at a server."""
