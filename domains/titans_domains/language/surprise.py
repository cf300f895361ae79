"""How surprised the memories are by each token of a text, and a picture of it."""

from pathlib import Path
from typing import Any

import torch

from titans_core.memory import Recall
from titans_domains.language.model import LanguageModel
from titans_domains.language.tokenizers import Tokenizer


@torch.no_grad()
def surprise_of(model: LanguageModel, tokenizer: Tokenizer, text: bytes) -> torch.Tensor:
    """Momentary surprise of each token of the text [T]: norm of its gradient, mean over all memories.

    The memories read the text from a fresh state on. ValueError for a model without any.
    """
    # A memory is called once for each segment, or once for all of the text.
    read: dict[Recall, list[torch.Tensor]] = {}
    start: dict[Recall, Any] = {}

    def remember(memory: Any, inputs: tuple[Any, ...]) -> None:
        x, state, *_ = inputs
        read.setdefault(memory, []).append(x)
        start.setdefault(memory, state)

    memories = [m for m in model.modules() if isinstance(m, Recall)]
    if not memories:
        raise ValueError(
            "The model has no memory that could be surprised: its mixer is "
            f"{model.backbone.config.mixer}."
        )
    ids = torch.from_numpy(tokenizer.encode(text)).to(model.embedding.weight.device)
    # Made before anybody listens: to make it, memories read tokens that are not of the text.
    state = model.backbone.fresh_state(1)
    hooks = [memory.register_forward_pre_hook(remember) for memory in memories]
    try:
        model(torch.cat([ids.new_tensor([tokenizer.end]), ids])[None], state)
    finally:
        for hook in hooks:
            hook.remove()
    parts = [
        memory.surprise(torch.cat(pieces, 1), start[memory])[0, 1:].flatten(1).mean(1)
        for memory, pieces in read.items()
    ]
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
