"""`report.html` of a run: curves, samples, settings and what made it, from the files of its folder alone."""

from titans_domains.report.build import REPORT, build_report, write_report
from titans_domains.report.facts import FACTS, Floors, HasFloors, write_facts

__all__ = ["FACTS", "REPORT", "Floors", "HasFloors", "build_report", "write_facts", "write_report"]
