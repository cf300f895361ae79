"""How a training ends before its last step: asked to, by another program, or by an error."""

import errno
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from titans_domains.checkpoints import step_name
from titans_domains.launch import is_orphan
from titans_domains.ranks import answered, shared, together, world
from titans_domains.train_config import TrainConfig


class TerminatedError(SystemExit):
    """The end of a process that was asked to end, after its checkpoint."""


class Save(Callback):
    """Checkpoints every `checkpoint_every` steps, at the end, and when the process is asked to end.

    SIGTERM and the first Ctrl-C take effect after the step that is being trained, and its checkpoint; of
    several processes in all of them, whichever was asked.
    """

    def __init__(self, folder: Path, config: TrainConfig, talk: Callable[[str], None]) -> None:
        self.folder, self.config, self.talk = folder, config, talk
        self.asked = 0
        self.begun = False  # whether the checkpoint that is gone on from was taken up

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.begun = True
        module.is_asked = self.is_asked
        # Lightning puts back what was there before it began. Other threads cannot be asked.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                # A process in the background, or under nohup, does not want to hear of it.
                if signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number

    def is_asked(self) -> int:
        """The signal by which this process was asked to end, or 0."""
        return self.asked or (signal.SIGTERM if is_orphan() else 0)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if (index + 1) % self.config.accumulate:
            return
        step = trainer.global_step
        asked = self.asked if world() == 1 else module.step.asked
        due = step % self.config.checkpoint_every == 0 or step == self.config.steps
        if due or asked:
            trainer.save_checkpoint(self.folder / step_name(step))
        if not asked:
            return
        self.talk(f"stopped after step {step}; its checkpoint is there to go on from with --resume")
        if asked == signal.SIGINT:
            raise KeyboardInterrupt
        raise shared(TerminatedError(128 + signal.SIGTERM))


@contextmanager
def in_a_sentence(out: Path, newest: Path | None, save: Save) -> Iterator[None]:
    """What may end a training, and is no fault of ours, in words that say how it can go on."""
    try:
        with answered():
            yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        # Lightning makes an exit of it.
        raise KeyboardInterrupt from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"There is no room left on the disk for {out}: make some, and go on with --resume from what "
            "was saved."
        ) from None
    except (LookupError, AttributeError, TypeError) as error:
        if newest is None or save.begun:
            raise
        # All processes have read the same.
        raise together(
            ValueError(
                f"{newest} does not fit this run ({type(error).__name__}: {error}): take it away to go on "
                "from the checkpoint before it."
            )
        ) from error
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise MemoryError(
            "There is not enough memory to train this: take a smaller train.batch_size with "
            "train.accumulate, a shorter data.seq_len or a smaller model; what was saved is there to go on "
            "from."
        ) from None


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the CPU's allocator, had no more to give."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
