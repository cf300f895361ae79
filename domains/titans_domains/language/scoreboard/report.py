"""The scoreboard as rows, CSV, Markdown and plots."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from titans_core.files import write_whole
from titans_domains.language.scoreboard.cell import Figures
from titans_domains.language.scoreboard.systems import SYSTEMS
from titans_domains.language.scoreboard.tasks import TASKS

COLUMNS = (
    "task", "system", "titans", "convolutions", "protocol", "trained_lengths", "steps", "batch_tokens",
    "tested_length", "figure", "mean", "lowest", "highest", "seeds", "diverged", "lr", "rate_at_edge",
    "state_bytes", "parameters", "added_parameters", "tokens_per_s",
    "training_memory_mib", "rows", "chance", "commits",
)  # fmt: skip


def rows(cells: Iterable[Figures], tried: Iterable[float]) -> list[dict[str, Any]]:
    """One row for each task, system and tested length, over the seeds; `tried` are the learning rates."""
    groups: dict[tuple[str, str], list[Figures]] = {}
    for figures in cells:
        groups.setdefault((figures["cell"]["task"], figures["cell"]["system"]), []).append(figures)
    edges = {min(tried), max(tried)}
    found = []
    for (task, system), group in groups.items():
        spec = TASKS[task]
        whole = [f for f in group if f["tests"]]
        lengths = list(whole[0]["tests"]) if whole else [str(spec.trained_length)]
        for length in lengths:
            values = [f["tests"][length][spec.figure] for f in whole]
            states = {k: v for f in whole[:1] for k, v in f["state_bytes"].items()}
            last = group[0]
            found.append(
                {
                    "task": task, "system": system, "titans": SYSTEMS[system].titans,
                    "convolutions": SYSTEMS[system].convolutions, "protocol": last["protocol"],
                    "trained_lengths": " ".join(map(str, last["spec"]["lengths"])),
                    "steps": last["spec"]["steps"], "batch_tokens": last["spec"]["batch_tokens"],
                    "tested_length": int(length),
                    "figure": spec.figure,
                    "mean": mean(values) if values else None,
                    "lowest": min(values, default=None), "highest": max(values, default=None),
                    "seeds": len(group), "diverged": len(group) - len(whole),
                    "lr": last["cell"]["lr"], "rate_at_edge": last["cell"]["lr"] in edges,
                    "state_bytes": states.get(length, next(iter(states.values()), None)),
                    "parameters": last["parameters"], "added_parameters": last["added_parameters"],
                    "tokens_per_s": mean([f["tokens_per_s"] for f in whole]) if whole else None,
                    "training_memory_mib": mean([f["training_memory_mib"] for f in whole])
                    if whole and whole[0]["training_memory_mib"] is not None else None,
                    "rows": whole[0]["tests"][length].get("rows") if whole else None,
                    "chance": last.get("chance"),
                    "commits": " ".join(sorted({str(f["made_with"]["commit"]) for f in group})),
                }
            )  # fmt: skip
    return found


def as_csv(table: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def as_markdown(table: list[dict[str, Any]], bench: str, command: str) -> str:
    """A table for each task: a line for each system, a column for each tested length."""
    lines = [f"# Scoreboard: {bench}", "", f"`{command}`", ""]
    for task in dict.fromkeys(row["task"] for row in table):
        mine = [row for row in table if row["task"] == task]
        spec = TASKS[task]
        lengths = sorted({row["tested_length"] for row in mine})
        heads = [f"at {length:,}" for length in lengths]
        how = "less is better" if spec.less_is_better else "more is better"
        lines += [
            f"## {task}", "",
            f"{spec.about}{' ' if spec.about else ''}Trained on lengths "
            f"{mine[0]['trained_lengths'].replace(' ', ', ')}, {mine[0]['steps']:,} steps of "
            f"{mine[0]['batch_tokens']:,} tokens; {spec.figure.replace('_', ' ')}, {how}"
            + (f", chance {mine[0]['chance']:.3g}" if mine[0]["chance"] else "") + ".", "",
            f"| system | {' | '.join(heads)} | seeds | convolutions | state, bytes | tokens/s | MiB | rate |",
            "|---" * (len(heads) + 7) + "|",
        ]  # fmt: skip
        for system in ranked(mine, spec.less_is_better):
            cells = {row["tested_length"]: row for row in mine if row["system"] == system}
            shown = [figure(cells.get(length)) for length in lengths]
            one = next(iter(cells.values()))
            state = max((r["state_bytes"] or 0 for r in cells.values()), default=0)
            lines.append(
                f"| {f'**{system}**' if one['titans'] else system} | {' | '.join(shown)} "
                f"| {one['seeds']} | {'yes' if one['convolutions'] else 'no'} | {state:,}"
                f"{' (grows)' if SYSTEMS[system].growing else ''} "
                f"| {number(one['tokens_per_s'])} | {number(one['training_memory_mib'])} "
                f"| {one['lr']:g}{' (edge)' if one['rate_at_edge'] else ''} |"
            )
        lines.append("")
    return "\n".join(lines)


def ranked(mine: list[dict[str, Any]], less: bool) -> list[str]:
    """The systems of a task, best first by their mean over the tested lengths."""
    values: dict[str, list[float]] = {}
    for row in mine:
        worst = float("inf") if less else -1.0
        values.setdefault(row["system"], []).append(worst if row["mean"] is None else row["mean"])
    return sorted(values, key=lambda system: mean(values[system]) * (1 if less else -1))


def figure(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["mean"] is None:
        return "diverged"
    text = f"{row['mean']:.3f}"
    if row["seeds"] - row["diverged"] > 1:
        text += f" ({row['lowest']:.3f} to {row['highest']:.3f})"
    return text + (f", {row['diverged']} diverged" if row["diverged"] else "")


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """A panel for each task: the figure by tested length, Titans in solid lines."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(row["task"] for row in table))
    systems = [s for s in SYSTEMS if any(row["system"] == s for row in table)]
    across = min(3, len(tasks))
    down = -(-len(tasks) // across)
    picture, axes = pyplot.subplots(
        down, across, figsize=(4.6 * across + 2.2, 3.4 * down), squeeze=False
    )
    colours = pyplot.get_cmap("tab20")
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks, strict=False):
        mine = [row for row in table if row["task"] == task and row["mean"] is not None]
        lengths = sorted({row["tested_length"] for row in mine})
        for n, system in enumerate(systems):
            line = sorted((r["tested_length"], r["mean"]) for r in mine if r["system"] == system)
            if line:
                axis.plot(
                    *zip(*line, strict=True), marker="o", markersize=3, label=system,
                    color=colours(n % 20), linestyle="-" if SYSTEMS[system].titans else "--",
                    linewidth=2 if SYSTEMS[system].titans else 1,
                )  # fmt: skip
        spec = TASKS[task]
        axis.set_title(task, fontsize=10)
        axis.set_xlabel("tokens")
        axis.set_ylabel(spec.figure.replace("_", " "))
        if len(lengths) > 1:
            axis.set_xscale("log", base=2)
            axis.axvline(spec.trained_length, color="grey", linewidth=0.8, linestyle=":")
        axis.set_xticks(lengths, [f"{length:,}" for length in lengths], fontsize=8)
        axis.minorticks_off()
        if not spec.less_is_better:
            axis.set_ylim(-0.03, 1.03)
    shown: dict[str, Any] = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    picture.legend(shown.values(), shown.keys(), loc="center right", fontsize=8, frameon=False)
    picture.tight_layout(rect=(0, 0, 1 - 2.2 / (4.6 * across + 2.2), 1))
    picture.savefig(path, dpi=110)
    pyplot.close(picture)


def write(
    cells: list[Figures], tried: Iterable[float], out: Path, bench: str, command: str
) -> list[Path]:
    """JSON with the rows, CSV, Markdown and, with matplotlib, the plot; the names of what was written."""
    table = rows(cells, list(tried))
    written = [out / f"{bench}.json", out / f"{bench}.csv", out / f"{bench}.md"]
    write_whole(written[0], json.dumps({"command": command, "rows": table}, indent=1) + "\n")
    write_whole(written[1], as_csv(table))
    write_whole(written[2], as_markdown(table, bench, command))
    try:
        draw(table, out / f"{bench}.png")
    except ModuleNotFoundError:
        return written
    return [*written, out / f"{bench}.png"]
