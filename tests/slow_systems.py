"""The rival systems once more, one token and one head at a time, from their papers' equations.

Slow on purpose and of another make than `titans_core.systems`, of which only the parameters are used.
One row; every method takes a token [dim] and gives back one.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from slow_mixers import Convolved, rms, turned, unit
from torch import Tensor, nn


class SlowHeads:
    """One matrix S [V, K] per head, y = S q: linear attention, RetNet, GLA and both DeltaNets."""

    def __init__(self, mixer: nn.Module, kind: str) -> None:
        self.mixer: Any = mixer
        self.kind, self.conv, self.written = kind, Convolved(self.mixer.conv), 0
        heads, key, value = self.mixer.sizes
        self.states = list(torch.zeros(heads, value, key, dtype=torch.float64))

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        mixer = self.mixer
        heads, key, value = mixer.sizes
        qkv = self.conv.token(mixer.qkv.weight @ x)
        if mixer.conv is not None or "delta" in self.kind:
            qkv = F.silu(qkv)
        q, k, v = qkv.split([heads * key, heads * key, heads * value])
        outputs = []
        for head in range(heads):
            keys, values = (
                slice(head * key, (head + 1) * key),
                slice(head * value, (head + 1) * value),
            )
            query, token = self.features(q[keys]), self.features(k[keys])
            if write:
                self.states[head] = self.step(x, head, self.states[head], token, v[values])
            outputs.append(rms(self.states[head] @ query / math.sqrt(key), mixer.out_norm))
        self.written += write
        y = torch.cat(outputs)
        if mixer.out_gate is not None:
            y = y * F.silu(mixer.out_gate.weight @ x)
        return mixer.out.weight @ y

    def features(self, x: Tensor) -> Tensor:
        if self.kind == "linear":
            return torch.where(x > 0, x + 1, x.exp())
        if self.kind == "retnet":
            return turned(x, self.written, 10_000.0)
        return unit(x) if "delta" in self.kind else x

    def step(self, x: Tensor, head: int, state: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixer, heads = self.mixer, self.mixer.sizes.heads
        write, identity = torch.outer(v, k), torch.eye(len(k), dtype=k.dtype)
        if self.kind == "linear":
            return state + write
        if self.kind == "retnet":
            return (1 - 2.0 ** (-5 - head)) * state + write
        if self.kind == "gla":
            logits = mixer.gates.weight @ (mixer.gates_in.weight @ x) + mixer.gates.bias
            decay = torch.sigmoid(logits.view(heads, -1)[head]) ** (1 / 16)
            return state @ torch.diag(decay) + write
        gates = mixer.gates.weight @ x
        beta = torch.sigmoid(gates[head])
        if self.kind == "deltanet":
            return state @ (identity - beta * torch.outer(k, k)) + beta * write
        step = F.softplus(gates[heads + head] + mixer.step_bias[head])
        decay = torch.exp(-torch.exp(mixer.rate_log[head]) * step)
        return decay * state @ (identity - beta * torch.outer(k, k)) + beta * write


class SlowChannels:
    """Mamba's block: a convolution over the channels, a state, a skip and a gate."""

    def __init__(self, mixer: nn.Module) -> None:
        self.mixer: Any = mixer
        self.conv = Convolved(self.mixer.conv)
        self.state = torch.zeros(self.mixer.shapes[0], dtype=torch.float64)

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        mixer = self.mixer
        value, gate = (mixer.value_gate.weight @ x).chunk(2)
        value = self.conv.token(value)
        value = F.silu(value if mixer.conv_bias is None else value + mixer.conv_bias)
        y = self.read(value, write) + mixer.skip * value
        return mixer.out.weight @ (y * F.silu(gate))

    def read(self, value: Tensor, write: bool) -> Tensor:
        raise NotImplementedError


class SlowMamba(SlowChannels):
    def read(self, value: Tensor, write: bool) -> Tensor:
        mixer = self.mixer
        low, b, c = (mixer.selection.weight @ value).split([mixer.rank, mixer.size, mixer.size])
        step = F.softplus(mixer.gates.weight @ low + mixer.gates.bias)
        if write:
            rows = []
            for e in range(len(value)):
                decay = torch.exp(-step[e] * torch.exp(mixer.rate_log[e]))
                rows.append(decay * self.state[e] + step[e] * b * value[e])
            self.state = torch.stack(rows)
        return self.state @ c


class SlowLonghorn(SlowChannels):
    """S_t as the minimum of |S - S_{t-1}|^2 + beta |S k - v|^2, by a linear system."""

    def read(self, value: Tensor, write: bool) -> Tensor:
        mixer = self.mixer
        k, q = (mixer.keys_queries.weight @ value).chunk(2)
        beta = torch.sigmoid(mixer.gates.weight @ value + mixer.gates.bias)
        if write:
            states = []
            for head, v in enumerate(value.view(mixer.heads, -1)):
                left = torch.eye(len(k), dtype=k.dtype) + beta[head] * torch.outer(k, k)
                right = self.state[head] + beta[head] * torch.outer(v, k)
                states.append(torch.linalg.solve(left, right.mT).mT)
            self.state = torch.stack(states)
        return (self.state @ q).flatten()


class SlowMamba2:
    def __init__(self, mixer: nn.Module) -> None:
        self.mixer: Any = mixer
        self.conv = Convolved(self.mixer.conv)
        self.state = torch.zeros(self.mixer.shapes[0], dtype=torch.float64)

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        mixer = self.mixer
        qkv = self.conv.token(mixer.qkv.weight @ x)
        qkv = F.silu(qkv if mixer.conv_bias is None else qkv + mixer.conv_bias)
        inner = mixer.heads * mixer.value
        value, b, c = qkv.split([inner, mixer.key, mixer.key])
        step = F.softplus(mixer.gates.weight @ x + mixer.step_bias)
        states, outputs = [], []
        for head, v in enumerate(value.view(mixer.heads, -1)):
            state = self.state[head]
            if write:
                decay = torch.exp(-step[head] * torch.exp(mixer.rate_log[head]))
                state = decay * state + step[head] * torch.outer(v, b)
            states.append(state)
            outputs.append(state @ c + mixer.skip[head] * v)
        self.state = torch.stack(states)
        y = torch.cat(outputs) * F.silu(mixer.out_gate.weight @ x)
        return mixer.out.weight @ rms(y, mixer.out_norm)


class SlowSlots:
    """GSA: slots of keys and of values that fade alike."""

    def __init__(self, mixer: nn.Module) -> None:
        self.mixer: Any = mixer
        self.conv = Convolved(self.mixer.conv)
        heads, key, value = self.mixer.sizes
        self.keys = list(torch.zeros(heads, self.mixer.slots, key, dtype=torch.float64))
        self.values = list(torch.zeros(heads, self.mixer.slots, value, dtype=torch.float64))

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        mixer = self.mixer
        heads, key, value = mixer.sizes
        qkv = self.conv.token(mixer.qkv.weight @ x)
        qkv = F.silu(F.silu(qkv) if mixer.conv is not None else qkv)
        q, k, v = qkv.split([heads * key, heads * key, heads * value])
        kept = torch.sigmoid((mixer.gates.weight @ x).view(heads, -1)) ** (1 / 8)
        outputs = []
        for head in range(heads):
            token, query = (part.view(heads, key)[head] for part in (k, q))
            if write:
                keep, take = torch.diag(kept[head]), 1 - kept[head]
                self.keys[head] = keep @ self.keys[head] + torch.outer(take, token)
                other = torch.outer(take, v.view(heads, value)[head])
                self.values[head] = keep @ self.values[head] + other
            outputs.append(self.values[head].mT @ (self.keys[head] @ query).softmax(0))
        return mixer.out.weight @ rms(F.silu(torch.cat(outputs)), mixer.out_norm)


def slow_system(name: str, mixer: nn.Module) -> Any:
    """The slow form of a system."""
    others = {
        "mamba": SlowMamba, "mamba2": SlowMamba2, "longhorn": SlowLonghorn, "gsa": SlowSlots
    }  # fmt: skip
    return others[name](mixer) if name in others else SlowHeads(mixer, name)
