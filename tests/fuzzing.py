"""Files with something wrong in them: from valid ones by chance, and bytes of no meaning."""

import json
import re
import struct
from collections.abc import Callable
from random import Random
from typing import Any

WORDS = (
    "", "-1", "0", "1e999", "-1e-999", "NaN", "inf", "1" * 400, "9" * 20, str(2**63), "null", "true", "\0",
    "../../x", "[", "{", '"', ">", "@", "\t", ",", "\n", "\r", "\u2028", "\udc80", "é", "日本",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**12, 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "x", "\0", "../../x", "a" * 3000, [], {}, [[]], [None], {"": None}, {"a": {}},
)  # fmt: skip
DTYPES = (
    "F32",
    "F64",
    "F16",
    "BF16",
    "I64",
    "I32",
    "U8",
    "BOOL",
    "F8_E4M3",
    "C64",
    "U64",
    "X",
    3,
    None,
)
SIZES = (0, 1, 2, 3, 2**20, 2**31, 2**40, 2**63, 2**64, -1, 1.5, "4", None)

BROKEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error)
"""What a mutation may come upon where another has been before."""

Mutation = Callable[[bytes, Random], bytes]


def flip(content: bytes, chance: Random) -> bytes:
    """A few bits turned."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(content: bytes, chance: Random) -> bytes:
    return content[: chance.randint(0, len(content))]


def drop(content: bytes, chance: Random) -> bytes:
    first = chance.randint(0, len(content))
    return content[:first] + content[first + chance.randint(1, 40) :]


def junk(content: bytes, chance: Random) -> bytes:
    at = chance.randint(0, len(content))
    return content[:at] + chance.randbytes(chance.randint(1, 40)) + content[at:]


def repeat(content: bytes, chance: Random) -> bytes:
    first = chance.randint(0, len(content))
    part = content[first : first + chance.randint(1, 60)]
    return content[:first] + part * chance.randint(2, 50) + content[first:]


def raw(content: bytes, chance: Random) -> bytes:
    """Nothing of what was there, but perhaps its first bytes, which say what a file is."""
    return content[: chance.choice((0, 0, 1, 2, 4, 8))] + chance.randbytes(chance.randint(0, 300))


def words(content: bytes, chance: Random) -> bytes:
    """A number or a word becomes another, or what is none."""
    places = list(re.finditer(rb"[\w.+-]+", content))
    for _ in range(chance.randint(1, 3)):
        if places:
            place = chance.choice(places)
            word = chance.choice(WORDS).encode(errors="surrogateescape")
            content = content[: place.start()] + word + content[place.end() :]
    return content


def lines(content: bytes, chance: Random) -> bytes:
    """A line doubled, gone, empty, or at another place."""
    parts = content.splitlines(keepends=True) or [b""]
    at, to = chance.randrange(len(parts)), chance.randrange(len(parts))
    kind = chance.randrange(4)
    if kind == 0:
        parts.insert(to, parts[at])
    elif kind == 1:
        del parts[at]
    elif kind == 2:
        parts.insert(at, b"\n")
    else:
        parts.insert(to, parts.pop(at))
    return b"".join(parts)


def nest(content: bytes, chance: Random) -> bytes:
    """Brackets in brackets, deeper than a parser may go, for a value."""
    places = list(re.finditer(rb"[:,\[]\s*", content)) or list(re.finditer(rb"$", content))
    place, depth = chance.choice(places), chance.choice((10, 1000, 100_000))
    inner = b"[" * depth + b"]" * chance.choice((0, depth))
    return content[: place.end()] + inner + content[place.end() :]


def twice(content: bytes, chance: Random) -> bytes:
    """A key of an object that stands in it once more, with another value."""
    keys = list(re.finditer(rb'"([^"]*)"\s*:', content))
    if not keys:
        return content
    key, place = chance.choice(keys), chance.choice(keys)
    value = json.dumps(chance.choice(VALUES)).encode()
    return content[: place.start()] + key[0] + value + b"," + content[place.start() :]


def tree(content: bytes, chance: Random) -> bytes:
    """JSON in which values are others, are gone, or bear another name."""
    table = json.loads(content)
    for _ in range(chance.randint(1, 3)):
        holders = [node for node in _nodes(table) if node]
        if not holders:
            break
        _change(chance.choice(holders), chance)
    return json.dumps(table).encode()


def _nodes(node: Any) -> list[Any]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    found = [node] if isinstance(node, dict | list) else []
    return found + [inner for child in children for inner in _nodes(child)]


def _change(node: Any, chance: Random) -> None:
    key: Any = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
    kind = chance.randrange(6)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[chance.choice(("x", "", key + "x"))] = node.pop(key)
    elif kind == 2 and isinstance(node, list):
        node += node[: chance.randint(1, 40)]
    else:
        node[key] = chance.choice(VALUES)


def each_line(content: bytes, chance: Random) -> bytes:
    """JSON of which each line is one, with one of them changed."""
    parts = content.splitlines(keepends=True)
    at = chance.randrange(len(parts))
    parts[at] = chance.choice((tree, nest, twice))(parts[at].rstrip(b"\n"), chance) + b"\n"
    return b"".join(parts)


def header(content: bytes, chance: Random) -> bytes:
    """A safetensors file that claims other names, types, shapes, places or lengths."""
    (size,) = struct.unpack("<Q", content[:8])
    table, numbers = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = [name for name in table if name != "__metadata__"]
    kind = chance.randrange(6)
    if kind == 0 or not names:
        return (
            struct.pack("<Q", chance.choice((0, 1, size + 1, 2**31, 2**63, 2**64 - 1)))
            + content[8:]
        )
    name = chance.choice(names)
    if kind == 1:
        table[name + "x"] = table.pop(name)
    elif kind == 2:
        table[name]["dtype"] = chance.choice(DTYPES)
    elif kind == 3:
        table[name]["shape"] = [chance.choice(SIZES) for _ in range(chance.randint(0, 4))]
    elif kind == 4:
        table[name]["data_offsets"] = [chance.choice(SIZES), chance.choice(SIZES)]
    else:
        table = json.loads(tree(json.dumps(table).encode(), chance))
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def metadata(content: bytes, chance: Random) -> bytes:
    """A safetensors file whose table of ours, in its header, is another."""
    (size,) = struct.unpack("<Q", content[:8])
    table, numbers = json.loads(content[8 : 8 + size]), content[8 + size :]
    ours = table.get("__metadata__", {})
    for key in ours:
        how = chance.choice((tree, nest, twice, flip, cut))
        ours[key] = how(ours[key].encode(), chance).decode(errors="replace")
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + numbers


BYTES: tuple[Mutation, ...] = (flip, cut, drop, junk, repeat, raw)
TEXT = (*BYTES, words, words, lines)
JSON = (*BYTES, words, nest, twice, tree, tree, tree)
JSON_LINES = (*TEXT, each_line, each_line)
SAFETENSORS = (*BYTES, header, header, metadata)
