"""Neural long-term memory and the blocks built on it."""

__version__ = "0.1.0"
