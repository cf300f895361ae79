"""A run as a service: completions with memories that last, forecasts, classes.

Needs the extra `serve`; nothing of it is imported here.
"""

from titans_domains.serving.settings import ServeConfig

__all__ = ["ServeConfig"]
