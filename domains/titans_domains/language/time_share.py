"""Language modelling with the time of every row shared among processes; see `titans_core.sequence`."""

from typing import TYPE_CHECKING, Any

import torch.distributed as dist
import torch.nn.functional as F

from titans_core.sequence import forward_share, hand_back, share_of
from titans_domains.domain import Step
from titans_domains.language.model import next_token_loss
from titans_domains.language.streams import Batch

if TYPE_CHECKING:
    from titans_domains.language.task import LanguageTask


class TimeShare:
    """A task of whose rows this process reads some tokens, the others of the group those before and after.

    What is carried is the first one's. All else is the task's own.
    """

    def __init__(self, task: "LanguageTask", group: dist.ProcessGroup) -> None:
        config, ranks = task.config.model, dist.get_world_size(group)
        if task.model.backbone.recurrent or not config.bounded:
            raise ValueError(
                f"--sequence-ranks {ranks} needs a mixer of layers whose state does not grow: got "
                f"{config.mixer}. Give model.attention.window, or share rows with --devices alone."
            )
        if task.config.data.seq_len < ranks * config.grid:
            raise ValueError(
                f"data.seq_len must be at least {ranks} times {config.grid} tokens, where a process may "
                f"begin, for --sequence-ranks {ranks}: got {task.config.data.seq_len}."
            )
        self.task, self.group = task, group
        self.tokens = share_of(task.config.data.seq_len, grid=config.grid, group=group)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def step(self, batch: Batch, state: Any) -> Step:
        model = self.task.model
        inputs, targets, mask, reset = (
            None if part is None else part[:, self.tokens] for part in batch
        )
        assert inputs is not None
        assert targets is not None
        # Kept by the first alone; what it is elsewhere nobody asks.
        state = model.backbone.take_up(state) if self.task.carry and state else None
        hidden, state = forward_share(
            model.backbone, model.embedding(inputs), state, group=self.group, mask=mask, reset=reset
        )
        loss = next_token_loss(F.linear(hidden, model.embedding.weight), targets, mask)
        tokens = inputs.numel() if mask is None else int(mask.sum())
        return Step(loss, self._carried(state), tokens, self.task.figures(loss))

    def _carried(self, state: Any) -> Any:
        if not self.task.carry:
            return ()
        backbone = self.task.model.backbone
        state = hand_back(backbone, state, group=self.group)
        return None if state is None else backbone.put_down(state)
