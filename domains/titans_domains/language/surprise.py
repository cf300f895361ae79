"""How surprised the memories are by each token of a text, and a picture of it."""

from pathlib import Path

import torch

from titans_core.listening import memories_of, overhearing
from titans_core.memory import NeuralMemoryState
from titans_domains.inspection.picture import letter_grid
from titans_domains.language.model import LanguageModel
from titans_domains.language.tokenizers import Tokenizer


@torch.no_grad()
def surprise_of(model: LanguageModel, tokenizer: Tokenizer, text: bytes) -> torch.Tensor:
    """Momentary surprise of each token of the text [T]: norm of its gradient, mean over all memories.

    The memories read the text from a fresh state on. ValueError for a model without any.
    """
    memories = memories_of(model)
    if not memories:
        raise ValueError(
            "The model has no memory that could be surprised: its mixer is "
            f"{model.backbone.config.mixer}."
        )
    # A memory is called once for each segment, or once for all of the text.
    found: dict[str, list[torch.Tensor]] = {name: [] for name in memories}

    def hear(name: str, x: torch.Tensor, state: NeuralMemoryState) -> None:
        found[name].append(memories[name].surprise_from(x, state)[0].flatten(1).mean(1))

    ids = torch.from_numpy(tokenizer.encode(text)).to(model.embedding.weight.device)
    with overhearing(model, hear):
        model(torch.cat([ids.new_tensor([tokenizer.end]), ids])[None])
    return torch.stack([torch.cat(parts)[1:] for parts in found.values()]).mean(0)


COLUMNS = 76


def draw_surprise(text: str, surprise: torch.Tensor, path: Path) -> None:
    """The text in lines of 76 letters, each on a colour for its surprise, as a picture."""
    from matplotlib.figure import Figure

    rows = -(-len(text) // COLUMNS)
    figure = Figure(figsize=(11, 0.5 + 0.26 * rows), layout="constrained")
    axes = figure.add_subplot()
    image = letter_grid(axes, text, surprise.float().cpu().numpy(), COLUMNS)
    axes.set_title("Surprise of the memory at each byte as it reads", fontsize=10)
    figure.colorbar(image, ax=axes, label="gradient norm", fraction=0.03)
    figure.savefig(path, dpi=110)
