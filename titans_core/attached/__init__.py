"""A neural memory in a Hugging Face causal language model that exists already.

`host.py` knows the models, `layer.py` is what is added to their layers, `cached.py` how its state
travels with the host's cache, `attaching.py` adds and removes it, `reading.py` reads beyond the host's
window, `saving.py` keeps what was added. transformers is imported only where one of its objects is made.
"""

from titans_core.attached.attaching import added_parameters, attach, detach_memory
from titans_core.attached.cached import carried
from titans_core.attached.reading import Reading, read
from titans_core.attached.saving import load_attached, save_attached

__all__ = [
    "Reading",
    "added_parameters",
    "attach",
    "carried",
    "detach_memory",
    "load_attached",
    "read",
    "save_attached",
]
