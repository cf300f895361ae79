"""Train a small language model on a text, then read on with its memory: python language.py [TEXT] [STEPS]"""

import sys
import tempfile
from pathlib import Path

import torch

from titans_core import load_memory, save_memory
from titans_domains.config import override
from titans_domains.language import DOMAIN, load_run
from titans_domains.language.reading import read_stream, stream_of
from titans_domains.language.task import texts_for
from titans_domains.runs import train_run

text = str(Path(sys.argv[1]).resolve()) if len(sys.argv) > 1 else "embedded"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 200
settings = [f"data.source={text}", f"train.steps={steps}", "data.seq_len=128"]
config = override(DOMAIN.presets["tiny"], [*settings, "data.held_out=0.1", "train.valid_every=0"])

with tempfile.TemporaryDirectory() as folder:
    run, device = Path(folder) / "run", torch.device("cpu")
    train_run(DOMAIN, config, run, device=device, talk=print)
    model, tokenizer, config = load_run(run, device)

    # Text that it has not seen: the first part goes into a memory file, and the next is read from there.
    unseen = b"\n".join(texts_for(run, config, None)[1])[:9216]
    first, then = unseen[: len(unseen) * 8 // 9], unseen[len(unseen) * 8 // 9 :]
    reading = read_stream(model, tokenizer, stream_of(tokenizer, first))
    save_memory(Path(folder) / "first.memory", reading.state, model.backbone)
    state = load_memory(Path(folder) / "first.memory", model.backbone)
    again = read_stream(model, tokenizer, stream_of(tokenizer, then, state), state)
    afresh = read_stream(model, tokenizer, stream_of(tokenizer, then))
    print(f"afresh:     {afresh.bits_per_byte:.3f} bits per byte")
    print(
        f"read on:    {again.bits_per_byte:.3f} bits per byte, with {len(first):,} bytes in memory"
    )
