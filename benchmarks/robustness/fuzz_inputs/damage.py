"""What is done to right input: to bytes, to nested content, and to JSON files as a whole."""

import copy
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

HUGE_NUMBER = "9" * 5000  # more digits than Python turns into an integer
Damage = tuple[str, float, float, bytes]
JUNK_BYTES = [b"", b"\0", b"\xff", b"\n", b"\r", b"\xef\xbb\xbf", b"\xff\xfe", b"PK\x03\x04", b"0" * 64, b"\x80\x04."]


def damages() -> SearchStrategy[list[Damage]]:
    """Draw what is done to bytes: where (as a share of their length), how much, and what comes in the place."""
    operations = st.sampled_from(["cut off", "flip a bit", "leave out", "double", "insert", "overwrite", "swap"])
    shares = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
    one = st.tuples(operations, shares, shares, st.sampled_from(JUNK_BYTES) | st.binary(max_size=12))
    return st.lists(one, min_size=1, max_size=3)


def damage(data: bytes, done: Sequence[Damage]) -> bytes:
    """Return bytes after all that `damages` drew."""
    for operation, where, much, junk in done:
        at = int(where * len(data))
        end = min(len(data), at + 1 + int(much**4 * (len(data) - at)))  # a small part more often than a large one
        if operation == "cut off":
            data = data[:at]
        elif operation == "flip a bit" and data:
            data = data[:at] + bytes([data[at] ^ (1 << int(much * 8))]) + data[at + 1 :]
        elif operation == "leave out":
            data = data[:at] + data[end:]
        elif operation == "double":
            data = data[:end] + data[at:]
        elif operation == "insert":
            data = data[:at] + junk + data[at:]
        elif operation == "overwrite":
            data = data[:at] + junk + data[at + len(junk) :]
        elif operation == "swap":
            data = data[at:] + data[:at]
    return data


# Nested content: JSON and checkpoints

Edit = tuple[str, int, str]
PLAIN_JUNK: dict[str, Callable[[Any], Any]] = {
    "null": lambda old: None,
    "true": lambda old: True,
    "minus one": lambda old: -1,
    "zero": lambda old: 0,
    "huge": lambda old: 10**30,
    "more than huge": lambda old: f"@{HUGE_NUMBER}@",
    "fraction": lambda old: 0.5,
    "nan": lambda old: math.nan,
    "infinity": lambda old: math.inf,
    "empty text": lambda old: "",
    "text": lambda old: "nosuch",
    "long text": lambda old: "x" * 100_000,
    "escape": lambda old: "\x1b[2Jhidden\r\nb",
    "surrogate": lambda old: "\ud800",
    "path": lambda old: "../../etc/passwd",
    "absolute": lambda old: "/etc/passwd",
    "hidden name": lambda old: ".hidden",
    "formula": lambda old: "=1+1",
    "list": lambda old: [],
    "object": lambda old: {},
    "in a list": lambda old: [old],
    "as text": lambda old: str(old),
    "in an object": lambda old: {"a": old},
    "deep": lambda old: f"@{'[' * 100_000}@",
    "twice": lambda old: [old, old],
}
TENSOR_JUNK: dict[str, Callable[[Any], Any]] = {
    **{name: junk for name, junk in PLAIN_JUNK.items() if name not in ("more than huge", "deep")},
    "empty tensor": lambda old: torch.zeros(0),
    "number": lambda old: torch.tensor(3.0),
    "declared huge": lambda old: torch.zeros(1).expand(10**12),
    "all nan": lambda old: old * math.nan if floating(old) else old,
    "all infinite": lambda old: old * 0 + math.inf if floating(old) else old,
    "other shape": lambda old: old[None] if isinstance(old, torch.Tensor) else torch.zeros(2, 2),
    "a row less": lambda old: old[1:] if isinstance(old, torch.Tensor) and old.ndim else old,
    "double": lambda old: old.double() if floating(old) else old,
    "half": lambda old: old.half() if floating(old) else old,
    "integers": lambda old: old.long() if floating(old) else old,
    "boolean": lambda old: old.bool() if isinstance(old, torch.Tensor) else old,
    "complex": lambda old: old.to(torch.complex64) if floating(old) else old,
    "sparse": lambda old: old.to_sparse() if floating(old) and old.ndim else old,
    "quantised": lambda old: torch.quantize_per_tensor(old, 0.1, 0, torch.qint8) if floating(old) else old,
    "meta": lambda old: old.to("meta") if floating(old) else old,
    "parameter": lambda old: torch.nn.Parameter(old) if floating(old) else old,
    "float8": lambda old: old.to(torch.float8_e4m3fn) if floating(old) else old,
    "nested": lambda old: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "dtype": lambda old: torch.float32,
    "size": lambda old: torch.Size([2]),
    "set": lambda old: {1, 2},
    "tuple": lambda old: (old,),
    "bytes": lambda old: b"\xff",
}


def floating(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def key_paths(content: Any, prefix: tuple[Any, ...] = (), most: int = 3) -> list[tuple[Any, ...]]:
    """Return the keys that lead to every entry of nested dictionaries and lists, of long lists to the first few."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        pairs = list(content.items())
    elif isinstance(content, list):
        pairs = list(enumerate(content))[:most]
    return [here for key, value in pairs for here in ((*prefix, key), *key_paths(value, (*prefix, key), most))]


def edits(junk: Sequence[str], most: int = 3) -> SearchStrategy[list[Edit]]:
    """Draw what is done to nested content: leave an entry out, give it another value or name, put another beside it."""
    operations = st.sampled_from(["replace", "replace", "remove", "rename", "add"])
    return st.lists(
        st.tuples(operations, st.integers(0, 10**6), st.sampled_from(list(junk))), min_size=1, max_size=most
    )


def edited(content: Any, done: Sequence[Edit], junk: dict[str, Callable[[Any], Any]]) -> Any:
    """Return a copy of nested content after all that `edits` drew."""
    content = copy.deepcopy(content)
    for operation, number, name in done:
        known = key_paths(content)
        if not known:
            return junk[name](content)
        *way, key = known[number % len(known)]
        holder = content
        for step in way:
            holder = holder[step]
        if operation == "replace":
            holder[key] = junk[name](holder[key])
        elif operation == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, junk[name](holder[key]))
        else:
            holder[f"{key}2"] = holder.pop(key) if operation == "rename" else junk[name](holder[key])
    return content


def as_json(content: Any) -> str:
    """Return JSON text, with what stands between @ and @ in a text as it is: no Python value would be written so."""
    return re.sub(r'"@([^"@]*)@"', r"\1", json.dumps(content))


TEXT_FORMS: dict[str, Callable[[str], bytes]] = {
    "utf-8": lambda text: text.encode("utf-8", "surrogatepass"),
    "with a mark": lambda text: b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass"),
    "utf-16": lambda text: text.encode("utf-16", "surrogatepass"),
    "latin-1": lambda text: text.replace("a", "\xe9").encode("latin-1", "replace"),
    "doubled keys": lambda text: text.replace("{", '{"id": 1, "id": 2, ', 3).encode("utf-8", "surrogatepass"),
    "two": lambda text: (text * 2).encode("utf-8", "surrogatepass"),
}


def json_cases(names: Sequence[str]) -> SearchStrategy[Any]:
    """Draw which JSON file is damaged, edits of its content, a form of its text, and sometimes damage to the bytes."""
    forms = st.sampled_from(["utf-8"] * 6 + list(TEXT_FORMS))
    return st.tuples(
        st.sampled_from(list(names)), edits(list(PLAIN_JUNK)), forms, st.just([]) | st.just([]) | damages()
    )


def json_bytes(text: bytes, done: Sequence[Edit], form: str, broken: Sequence[Damage]) -> bytes:
    """Return the bytes of a JSON file after what `json_cases` drew."""
    return damage(TEXT_FORMS[form](as_json(edited(json.loads(text), done, PLAIN_JUNK))), broken)
