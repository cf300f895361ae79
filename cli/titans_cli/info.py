"""Versions, devices and kernel backends, and why one cannot run here."""

import json
import os
import platform
import re
from importlib import metadata
from typing import Any

import typer

from titans_cli.options import Json
from titans_cli.plugins import DISTRIBUTION, plugins, provider, summary

# What it takes to work on the toolkit is of no concern to those who use it.
DEVELOPER_EXTRAS = ("test", "dev", "docs")
# A backend that the kernels know speaks for itself.
PLANNED_BACKENDS = {"triton": "this version has no Triton kernels yet"}

app = typer.Typer(rich_markup_mode=None)


@app.command(epilog="Example: titans info --json")
def info(as_json: Json = False) -> None:
    """Show versions, devices, kernel backends, domains and optional extras."""
    facts = {
        "versions": versions(),
        "devices": devices(),
        "backends": backends(),
        "domains": domains(),
        "extras": extras(),
    }
    typer.echo(json.dumps(facts, indent=2) if as_json else as_text(facts))


def versions() -> dict[str, str | None]:
    """The toolkit, Python, and every distribution that the toolkit needs; None where it is missing."""
    found: dict[str, str | None] = {
        DISTRIBUTION: installed(DISTRIBUTION),
        "python": platform.python_version(),
    }
    return found | {name: installed(name) for name, extra in requirements() if extra is None}


def devices() -> dict[str, Any]:
    """Every device by the name that `--device` takes; text where there is none to be had."""
    import torch

    cpu = {
        "threads": torch.get_num_threads(),
        "cores": cores(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.version.cuda is None:
        return {"cpu": cpu, "cuda": "the installed torch is a build without CUDA"}
    if not torch.cuda.is_available():
        return {"cpu": cpu, "cuda": f"torch is built for CUDA {torch.version.cuda} but sees no GPU"}
    found: dict[str, Any] = {"cpu": cpu}
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = {
            "model": gpu.name,
            "memory_gib": round(gpu.total_memory / 2**30, 1),
            "capability": f"{gpu.major}.{gpu.minor}",
        }
    return found


def cores() -> int | None:
    """Those this process may use, which in a container is fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def backends() -> dict[str, str | None]:
    """Why each backend of the kernels cannot run here; None where it can."""
    from titans_kernels import available_backends

    known = available_backends()
    return known | {name: why for name, why in PLANNED_BACKENDS.items() if name not in known}


def domains() -> dict[str, dict[str, str]]:
    return {
        name: {"summary": summary(point), "provider": provider(point)}
        for name, point in plugins("titans.domains").items()
    }


def extras() -> dict[str, dict[str, str | None]]:
    """By extra, the version of every distribution that it adds; None where it is missing."""
    found: dict[str, dict[str, str | None]] = {}
    for name, extra in requirements():
        if extra is not None and extra not in DEVELOPER_EXTRAS:
            found.setdefault(extra, {})[name] = installed(name)
    return found


def requirements() -> list[tuple[str, str | None]]:
    """The toolkit's direct requirements: distribution, and the extra that asks for it."""
    found = []
    for line in metadata.requires(DISTRIBUTION) or ():
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        assert name is not None, line
        found.append((name[0], extra[1] if extra else None))
    return found


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def as_text(facts: dict[str, Any]) -> str:
    sections = {
        "versions": {name: v or "not installed" for name, v in facts["versions"].items()},
        "devices": {name: device_line(device) for name, device in facts["devices"].items()},
        "backends": {
            name: "can run here" if reason is None else f"cannot run here: {reason}"
            for name, reason in facts["backends"].items()
        },
        "domains": {
            name: f"{domain['summary']} ({domain['provider']})"
            for name, domain in facts["domains"].items()
        },
        "extras": {name: extra_line(name, extra) for name, extra in facts["extras"].items()},
    }
    width = max(len(name) for rows in sections.values() for name in rows)
    lines = []
    for title, rows in sections.items():
        lines += [title, *(f"  {name:{width}}  {row}" for name, row in rows.items())]
    return "\n".join(lines)


def device_line(device: dict[str, Any] | str) -> str:
    if isinstance(device, str):
        return f"none: {device}"
    if "model" in device:
        return f"{device['model']}, {device['memory_gib']} GiB, sm {device['capability']}"
    return f"{device['threads']} threads on {device['cores']} cores, {device['instructions']}"


def extra_line(name: str, extra: dict[str, str | None]) -> str:
    missing = [distribution for distribution, version in extra.items() if version is None]
    if missing:
        return f"{', '.join(missing)} missing: pip install '{DISTRIBUTION}[{name}]'"
    return ", ".join(f"{distribution} {version}" for distribution, version in extra.items())
