"""Synthetic tasks for language models, generated from seeds."""
