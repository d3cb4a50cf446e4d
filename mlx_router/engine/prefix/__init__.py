"""Computed prompts, kept for prompts that begin in the same way."""
