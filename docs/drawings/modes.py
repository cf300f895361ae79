"""Draws modes.svg, how far a memory is from its start when it is carried, frozen or reset:
python docs/drawings/modes.py

Computed by a NeuralMemory as it begins, which reads 512 random tokens, seed 0.
"""

from pathlib import Path

import torch
from canvas import ATTENTION, GREY, INPUT, MEMORY, plt, save

from titans_core import MemoryConfig, NeuralMemory

DIM, TOKENS, EVERY = 32, 512, 128


@torch.no_grad()
def distances() -> dict[str, list[float]]:
    torch.manual_seed(0)
    memory = NeuralMemory(DIM, MemoryConfig(num_heads=2))
    x = torch.randn(1, TOKENS, DIM)
    found = {}
    for mode in ("carried", f"reset every {EVERY}", "frozen"):
        state, line = memory.fresh_state(1), []
        for t in range(TOKENS):
            if mode.startswith("reset") and t % EVERY == 0:
                state = memory.restart_memory(state)
            _, state = memory(x[:, t : t + 1], state, write=mode != "frozen")
            # The state holds what was added to the learned start.
            line.append(float(sum(w.square().sum() for w in state.memory.memory).sqrt()))
        found[mode] = line
    return found


def draw(folder: Path | None = None) -> None:
    figure, axes = plt.subplots(figsize=(8.2, 3.0), layout="constrained")
    for (name, line), colour in zip(distances().items(), (MEMORY, ATTENTION, INPUT), strict=True):
        axes.plot(line, color=colour, linewidth=1.6)
        # Carried and reset end at one height.
        lower = 0.5 if name.startswith("reset") else 0.0
        axes.text(TOKENS + 6, line[-1] - lower, name, color=colour, va="center")
    for t in range(EVERY, TOKENS, EVERY):
        axes.axvline(t, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xlabel="tokens read", ylabel="distance from start", xlim=(0, TOKENS * 1.2))
    axes.set_xticks(range(0, TOKENS + 1, EVERY))
    save(figure, __file__, folder)


if __name__ == "__main__":
    draw()
