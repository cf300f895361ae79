"""How surprised the memories are by each token of a text, and a picture of it."""

from pathlib import Path
from typing import Any

import torch

from titans_core import NeuralMemory
from titans_domains.language.model import LanguageModel
from titans_domains.language.tokenizers import Tokenizer


@torch.no_grad()
def surprise_of(model: LanguageModel, tokenizer: Tokenizer, text: bytes) -> torch.Tensor:
    """Momentary surprise of each token of the text [T]: norm of its gradient, mean over all memories.

    The memories read the text from a fresh state on. ValueError for a model without any.
    """
    seen: list[tuple[NeuralMemory, torch.Tensor]] = []

    def remember(module: Any, inputs: Any) -> None:
        seen.append((module, inputs[0]))

    memories = [m for m in model.modules() if isinstance(m, NeuralMemory)]
    if not memories:
        raise ValueError("The model has no memory that could be surprised: its mixer is attention.")
    hooks = [memory.register_forward_pre_hook(remember) for memory in memories]
    ids = torch.from_numpy(tokenizer.encode(text)).to(model.embedding.weight.device)
    try:
        model(torch.cat([ids.new_tensor([tokenizer.end]), ids])[None])
    finally:
        for hook in hooks:
            hook.remove()
    parts = [memory.surprise(x)[0, 1:].flatten(1).mean(1) for memory, x in seen]
    return torch.stack(parts).mean(0)


COLUMNS = 76


def draw_surprise(text: str, surprise: torch.Tensor, path: Path) -> None:
    """The text in lines of 76 letters, each on a colour for its surprise, as a picture."""
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    rows = -(-len(text) // COLUMNS)
    grid = torch.full((rows * COLUMNS,), float("nan"))
    grid[: len(surprise)] = surprise.float().cpu()
    figure = Figure(figsize=(11, 0.5 + 0.26 * rows), layout="constrained")
    axes = figure.add_subplot()
    low, high = (surprise.quantile(q).item() for q in (0.02, 0.98))
    image = axes.imshow(
        grid.view(rows, COLUMNS).numpy(),
        cmap="YlOrRd",
        norm=Normalize(low, high),
        aspect="auto",
        alpha=0.75,
    )
    for index, letter in enumerate(text):
        axes.text(
            index % COLUMNS, index // COLUMNS, letter if letter.isprintable() else "¶",
            ha="center", va="center", family="monospace", fontsize=8, parse_math=False,
        )  # fmt: skip
    axes.set_axis_off()
    axes.set_title("Surprise of the memory at each byte as it reads", fontsize=10)
    figure.colorbar(image, ax=axes, label="gradient norm", fraction=0.03)
    figure.savefig(path, dpi=110)
