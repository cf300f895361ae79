"""Reports on what a trained memory does with what it reads, for every domain that has a `Subject`."""

from titans_domains.inspection.subject import Inspectable, Passage, Subject

__all__ = ["Inspectable", "Passage", "Subject"]
