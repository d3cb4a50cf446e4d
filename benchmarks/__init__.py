"""Measurements of MLX Router against what it is built on. Start with ``python -m benchmarks``."""
