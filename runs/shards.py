"""Safetensors files in one piece or in numbered shards of a limited size, and the cards beside them.

NAME.safetensors is that file or, where it would be too large, NAME-00001-of-00003.safetensors and so on. Shards hold
whole tensors in order. A tensor that is larger than a shard is cut along its rows, into NAME.rows0, NAME.rows1, ...

The first shard has the file's own metadata. Each says which one it is (`part`) of how many (`parts`) and, as `whole`,
the sha256 of the file that they would be together, so that shards of two files are never mixed. The card, NAME.json,
has the sha256 of the file and of its shards (`parts`); a file whose card says something else is refused.
"""

import glob
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from utils.errors import UserError
from utils.files import check_folder, make_folder, read_json, sha256_file, write_atomically, write_json
from utils.outside import plain_path

SHARD_MIB = 15.0  # a shard stays below 16 MB
SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
UNFINISHED = {"unfinished": "this file is being written, or was when its command was stopped, which then begins anew"}
ROWS = re.compile(r"(.+)\.rows(\d+)")


def card_of(file: Path) -> Path:
    """Return where the card of a released file is."""
    return file.with_suffix(".json")


def find_shards(file: Path) -> list[Path]:
    """Return the files that hold NAME.safetensors: itself, or its shards in order where it is not there.

    Without any it is `file` alone, whose absence is for the reader to report. Raises UserError where a shard is missing
    or shards of two divisions lie side by side.
    """
    if os.path.exists(file):  # unlike pathlib, it has no exceptions for names that cannot be
        return [file]
    beside = sorted(file.parent.glob(f"{glob.escape(file.stem)}-*-of-*{file.suffix}"))
    matches = [(path, SHARD_NAME.fullmatch(path.stem)) for path in beside]
    totals = {path: int(match[3]) for path, match in matches if match and match[1] == file.stem}
    if not totals:
        return [file]
    count = max(totals.values())
    if count == 0:
        raise UserError(f"{beside[0]} says that it is a shard of none; remove it")
    strangers = [path for path, total in totals.items() if total != count]
    if strangers:
        raise UserError(
            f"{strangers[0]} is a shard of another file than the {count} shards beside it; remove one of the two"
        )
    expected = shard_names(file, count)
    missing = [path for path in expected if path not in totals]
    if missing:
        raise UserError(f"{missing[0]} is missing: {file.name} consists of {count} shards")
    return expected


def shard_names(file: Path, count: int) -> list[Path]:
    """Return the names of the `count` shards of a file."""
    return [file.with_name(f"{file.stem}-{i + 1:05d}-of-{count:05d}{file.suffix}") for i in range(count)]


def joint_sha256(digests: list[str]) -> str:
    """Return the sha256 that stands for a file: its own, or the one over the (hexadecimal) sha256 of its shards."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def describe_files(file: Path) -> dict[str, Any]:
    """Return what the card of a file says of its name and its sha256, and of those of its shards where it has any."""
    paths = find_shards(file)
    digests = [sha256_file(path) for path in paths]
    shards = [{"file": path.name, "sha256": digest} for path, digest in zip(paths, digests, strict=True)]
    whole = {"file": file.name, "sha256": joint_sha256(digests)}
    return whole if len(paths) == 1 else {**whole, "parts": shards}


def refuse_other_card(file: Path, paths: list[Path], digests: list[str]) -> None:
    """Raise UserError where a card lies beside a file and is that of another one."""
    card_path = card_of(file)
    if not os.path.isfile(card_path):
        return
    card = read_json(card_path)
    if "sha256" not in card:
        return  # some other file of that name
    shards = card.get("parts") or [card]
    if not isinstance(shards, list):
        raise UserError(f"{card_path} is damaged: its 'parts' are no list; get it anew")
    expected = [shard.get("sha256") if isinstance(shard, dict) else None for shard in shards]
    wrong = [path for path, digest, known in zip(paths, digests, expected, strict=False) if digest != known]
    if wrong or len(paths) != len(expected) or joint_sha256(digests) != card["sha256"]:
        raise UserError(
            f"{(wrong or paths)[0]} is not what its card {card_path.name} describes: their sha256 differ; get both anew"
        )


def read_safetensors(file: Path) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """Return the sha256, the tensors and the metadata of a file, whole or in shards.

    Raises UserError for a shard that is missing, alone or of another file, and for a card of another file. What
    safetensors raises for a damaged file is passed on.
    """
    paths = find_shards(file)
    digests = [sha256_file(path) for path in paths]
    refuse_other_card(file, paths, digests)
    tensors: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    for i, path in enumerate(paths):
        with plain_path(path) as held, safe_open(held, framework="pt") as opened:
            metadata = opened.metadata() or {}
            own = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # not a dictionary
        if own.keys() & tensors.keys():
            raise UserError(f"{path} repeats tensors of the shards before it: it is damaged")
        tensors |= own
        first = first or metadata
        if len(paths) == 1 and "part" in metadata:
            match = SHARD_NAME.fullmatch(path.stem)
            whole = f"; name {path.with_stem(match[1])}" if match else ""
            raise UserError(f"{path} is only shard {metadata['part']} of a file{whole}")
        if metadata.get("whole") != first.get("whole") or metadata.get("part", f"{i + 1}") != f"{i + 1}":
            raise UserError(f"{path} is not a shard of the same file as {paths[0].name}; get all shards anew")
    return joint_sha256(digests), join_rows(tensors), first


def join_rows(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put tensors together again that were cut along their rows."""
    joined: dict[str, Tensor] = {}
    pieces: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        match = ROWS.fullmatch(name)
        if match:
            pieces.setdefault(match[1], {})[int(match[2])] = tensor
        else:
            joined[name] = tensor
    for name, own in pieces.items():
        if sorted(own) != list(range(len(own))):
            raise UserError(f"rows of the tensor {name} are missing; get all shards anew")
    return joined | {name: torch.cat([own[i] for i in range(len(own))]) for name, own in pieces.items()}


def refuse_taken_name(file: Path) -> None:
    """Raise UserError where a file cannot be released under this name."""
    if file.suffix != ".safetensors":
        raise UserError(f"{file} must end in .safetensors")
    check_folder("FILE", file.parent)
    remove_unfinished(file)
    present = [path for path in (card_of(file), *find_shards(file)) if path.exists()]
    if present:
        raise UserError(f"{present[0]} is there already; neither a released file nor its card may exist")


def remove_unfinished(file: Path) -> None:
    """Remove what a command that was stopped has written of a file: its card says that it is not finished."""
    card = card_of(file)
    if not card.is_file() or read_json(card) != UNFINISHED:
        return
    shards = [
        path for path in file.parent.iterdir() if (match := SHARD_NAME.fullmatch(path.stem)) and match[1] == file.stem
    ]
    for path in (file, *shards, card):  # the card last: as long as it is there, the rest can be told to be ours
        if path.suffix in (".safetensors", ".json"):
            path.unlink(missing_ok=True)


def write_safetensors(
    file: Path,
    tensors: Mapping[str, Tensor],
    header: dict[str, Any],
    part_mib: float = SHARD_MIB,
    *,
    uncut: bool = False,
) -> list[Path]:
    """Write tensors with a header, as one file or in shards of at most `part_mib` MiB; return what was written.

    Until its card is written, which is for the caller, a card says that the file is not finished. With `uncut` a tensor
    that is larger than a shard is one of its own, and all files name the format that transformers asks for.
    """
    form = {"format": "pt"} if uncut else {}
    metadata = {"checkpoint": json.dumps(header), **form}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    content = save(tensors, metadata)
    if not 0 < part_mib < math.inf:
        raise UserError(f"--part_mib must be a positive number, not {part_mib:g}")
    limit = int(part_mib * 2**20)
    make_folder(file.parent)
    if len(content) <= limit:
        write_json(card_of(file), UNFINISHED)
        write_atomically(file, lambda opened: opened.write(content))
        return [file]
    # What a shard holds beside its tensors: the header, whose quotation marks are escaped, and a line for each tensor.
    overhead = 1024 + len(json.dumps(metadata)) + sum(200 + len(key) for key in tensors)
    if limit <= overhead:
        raise UserError(f"--part_mib {part_mib:g} leaves no room for tensors: the header alone needs {overhead} bytes")
    groups = pack(tensors if uncut else cut_rows(tensors, limit - overhead), limit - overhead)
    paths = shard_names(file, len(groups))
    common = {"whole": hashlib.sha256(content).hexdigest(), "parts": str(len(groups)), **form}
    write_json(card_of(file), UNFINISHED)
    for i, (path, group) in enumerate(zip(paths, groups, strict=True)):
        own = {**(metadata if i == 0 else {}), **common, "part": str(i + 1)}
        shard = save(group, own)
        assert uncut or len(shard) <= limit
        write_atomically(path, lambda opened, shard=shard: opened.write(shard))  # type: ignore[misc]
    return paths


def cut_rows(tensors: dict[str, Tensor], limit: int) -> dict[str, Tensor]:
    """Cut the tensors of more than `limit` bytes along their first dimension."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.nbytes <= limit:
            result[name] = tensor
            continue
        rows = limit // math.ceil(tensor.nbytes / len(tensor))
        if rows == 0:
            raise UserError(f"one row of {name} is larger than a shard; take a larger --part_mib")
        result |= {f"{name}.rows{i}": piece.contiguous() for i, piece in enumerate(tensor.split(rows))}
    return result


def pack(tensors: dict[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Divide tensors, in their order, into groups of at most `limit` bytes."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > limit:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    return groups
