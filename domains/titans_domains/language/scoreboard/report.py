"""The scoreboard as rows, CSV, Markdown and plots."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

from titans_core.files import write_whole
from titans_domains.language.scoreboard.board import rank
from titans_domains.language.scoreboard.cell import Figures
from titans_domains.language.scoreboard.systems import SYSTEMS
from titans_domains.language.scoreboard.tasks import TASKS

COLUMNS = (
    "task", "system", "titans", "convolutions", "protocol", "trained_lengths", "steps", "batch_tokens",
    "tested_length", "figure", "mean", "lowest", "highest", "macro", "exact", "best_rate_on_test", "rows",
    "seeds", "diverged", "lr", "rate_at_edge", "state_bytes", "parameters", "added_parameters",
    "tokens_per_s", "training_memory_mib", "threads", "chance", "commits",
)  # fmt: skip


def rows(found: Iterable[Figures]) -> list[dict[str, Any]]:
    """One row for each task, system and tested length, over the seeds.

    Of several learning rates it has the one that is best in validation, and beside it what the one that
    is best on the test rows would give. A seed that diverged counts as nothing right.
    """
    groups: dict[tuple[str, str], list[Figures]] = {}
    tried: dict[str, set[float]] = {}
    for figures in found:
        cell = figures["cell"]
        groups.setdefault((cell["task"], cell["system"]), []).append(figures)
    for (_, system), group in groups.items():
        rates = {f["cell"]["lr"] for f in group if f["cell"]["seed"] == 0}
        tried[system] = max(tried.get(system, set()), rates, key=len)
    lines = []
    for (task, system), every in groups.items():
        first = [f for f in every if f["cell"]["seed"] == 0]
        lr = min(first, key=rank)["cell"]["lr"]
        group = [f for f in every if f["cell"]["lr"] == lr]
        lengths = next((list(f["tests"]) for f in every if f["tests"]), [])
        edge = len(tried[system]) > 1 and lr in (min(tried[system]), max(tried[system]))
        about = {
            "task": task, "system": system, "titans": SYSTEMS[system].titans,
            "convolutions": SYSTEMS[system].convolutions, "lr": lr, "rate_at_edge": edge,
        }  # fmt: skip
        lines += [about | at_length(length, group, first) for length in lengths]
    return lines


def at_length(length: str, group: list[Figures], rates: list[Figures]) -> dict[str, Any]:
    """The figures of one tested length; `rates` are those of one seed at every learning rate."""
    one = group[0]
    name, less = one["spec"]["figure"], one["spec"]["problem"] is None
    worst = None if less else 0.0

    def all_of(which: str, cells: list[Figures]) -> list[float]:
        values = [f["tests"][length].get(which) if f["tests"] else worst for f in cells]
        return [value for value in values if value is not None]

    values, whole = all_of(name, group), [f for f in group if f["tests"]]
    states = [f["state_bytes"].get(length, next(iter(f["state_bytes"].values()))) for f in whole]
    on_test = all_of(name, rates) if len(rates) > 1 else []
    return {
        "protocol": one["protocol"],
        "trained_lengths": " ".join(map(str, one["spec"]["lengths"])),
        "steps": one["spec"]["steps"], "batch_tokens": one["spec"]["batch_tokens"],
        "tested_length": int(length), "figure": name,
        "mean": mean(values) if values else None,
        "lowest": min(values, default=None), "highest": max(values, default=None),
        "macro": mean(found) if (found := all_of("macro", group)) else None,
        "exact": mean(found) if (found := all_of("exact", group)) else None,
        "best_rate_on_test": (min if less else max)(on_test, default=None),
        "rows": next((f["tests"][length].get("rows") for f in whole), None),
        "seeds": len(group), "diverged": len(group) - len(whole),
        "state_bytes": max(states, default=None), "parameters": one["parameters"],
        "added_parameters": one["added_parameters"],
        "tokens_per_s": median(f["tokens_per_s"] for f in whole) if whole else None,
        "training_memory_mib": max((f["training_memory_mib"] or 0 for f in whole), default=None),
        "threads": one["made_with"].get("threads"),
        "chance": next((f["chance"] for f in group if f.get("chance") is not None), None),
        "commits": " ".join(sorted({str(f["made_with"]["commit"]) for f in group})),
    }  # fmt: skip


def as_csv(table: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def as_markdown(table: list[dict[str, Any]], bench: str, command: str) -> str:
    """A table for each task: a line for each system, a column for each tested length."""
    commits = sorted({commit for row in table for commit in row["commits"].split()})
    lines = [
        f"# Scoreboard: {bench}", "",
        f"`{command}`", "",
        f"Commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}. Mean over the seeds, lowest and "
        "highest in brackets; Titans in bold. Tokens a second and memory are those of training, beside "
        "whatever else ran.", "",
    ]  # fmt: skip
    for task in dict.fromkeys(row["task"] for row in table):
        mine = [row for row in table if row["task"] == task]
        spec, one = TASKS[task], mine[0]
        lengths = sorted({row["tested_length"] for row in mine})
        macro = task.startswith("mad-")
        heads = [f"at {length:,}" for length in lengths] + (["macro"] if macro else [])
        how = "less is better" if spec.less_is_better else "more is better"
        asked = ", ".join(f"{row['rows']:,}" for row in rows_asked(mine) if row["rows"])
        lines += [
            f"## {task}", "",
            f"{spec.about} {one['protocol'].capitalize()}, on lengths "
            f"{one['trained_lengths'].replace(' ', ', ')}, {one['steps']:,} steps of "
            f"{one['batch_tokens']:,} tokens; {one['figure'].replace('_', ' ')}, {how}"
            + (f", chance {one['chance']:.3g}" if one["chance"] else "")
            + (f"; test rows {asked}" if asked else "") + ".", "",
            f"| system | {' | '.join(heads)} | seeds | convolutions | parameters | state, bytes | tokens/s "
            "| MiB | rate |",
            "|---" * (len(heads) + 8) + "|",
        ]  # fmt: skip
        for system in ranked(mine, spec.less_is_better):
            cells = {row["tested_length"]: row for row in mine if row["system"] == system}
            one = next(iter(cells.values()))
            shown = [figure(cells.get(length)) for length in lengths]
            shown += [f"{one['macro']:.3f}" if one["macro"] is not None else ""] if macro else []
            state = max((r["state_bytes"] or 0 for r in cells.values()), default=0)
            lines.append(
                f"| {f'**{system}**' if one['titans'] else system} | {' | '.join(shown)} "
                f"| {one['seeds']} | {'yes' if one['convolutions'] else 'no'} | {one['parameters']:,} "
                f"| {state:,}{' (grows)' if SYSTEMS[system].growing else ''} "
                f"| {number(one['tokens_per_s'])} | {number(one['training_memory_mib'])} "
                f"| {one['lr']:g}{' (edge)' if one['rate_at_edge'] else ''} |"
            )
        lines.append("")
    return "\n".join(lines)


def rows_asked(mine: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row of the table for each tested length."""
    return list({row["tested_length"]: row for row in mine}.values())


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
    if row["seeds"] > 1:
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


def write(found: Iterable[Figures], out: Path, bench: str, command: str) -> list[Path]:
    """JSON with the rows, CSV, Markdown and, with matplotlib, the plot; the names of what was written."""
    table = rows(found)
    written = [out / f"{bench}.json", out / f"{bench}.csv", out / f"{bench}.md"]
    write_whole(written[0], json.dumps({"command": command, "rows": table}, indent=1) + "\n")
    write_whole(written[1], as_csv(table))
    write_whole(written[2], as_markdown(table, bench, command))
    try:
        draw(table, out / f"{bench}.png")
    except ModuleNotFoundError:
        return written
    return [*written, out / f"{bench}.png"]
