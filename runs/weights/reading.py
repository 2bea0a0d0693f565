"""A file of PyTorch's, read: what it is by its content, what it holds, and the one line for whatever is wrong."""

import os
import pickle
import re
from pathlib import Path
from typing import IO, Any

from runs.archives import refuse_flipped_bits, refuse_strange_tensors, refuse_zip_bomb
from runs.weights.formats import FEATURES, SAFETENSORS, TORCH, recognise
from runs.weights.pickles import find_stand_in, load_pickled
from utils.errors import UserError, is_out_of_memory, no_memory
from utils.files import sha256_of
from utils.outside import open_plain
from utils.text import shown

# --trust_pickle: given, not given, or None where there is no such flag and its name would be bad advice.
Trust = bool | None

HOLDS_MORE = "holds more than tensors and plain values"


def format_of(path: Path) -> str:
    """Return what a file that is there is by its content (`runs.weights.formats`), "" for what is not known."""
    with open_plain(path, "the checkpoint") as file:
        return recognise(file)[0]


def read_pytorch(path: Path, trust_pickle: Trust = None) -> tuple[str, Any]:
    """Return the sha256 of a file of PyTorch's and what it holds: anything, if the file is to be trusted."""
    with open_plain(path, "the checkpoint") as file:
        refuse_other_format(file, trust_pickle)
        file.seek(0)
        digest = sha256_of(file)
        if not trust_pickle:
            refuse_zip_bomb(file)
            file.seek(0)
        content = load_pickled(file, bool(trust_pickle))
        refuse_flipped_bits(file)
        refuse_strange_tensors(content, os.fstat(file.fileno()).st_size)
    if find_stand_in([content] if not isinstance(content, dict) else []):
        raise UserError(more_than_tensors(str(find_stand_in([content])), trust_pickle))
    return digest, content


def refuse_other_format(file: IO[bytes], trust_pickle: Trust) -> None:
    """Raise UserError, which says what it is, for a file that torch.save did not write."""
    words, advice = recognise(file)
    if words == FEATURES:
        raise UserError("it is an archive of numpy arrays; rename it to .npz, and name it with --features")
    if words in (SAFETENSORS, TORCH) or advice is None:
        return
    by_trust = ", or, if you trust its source, add --trust_pickle"
    if by_trust in advice:
        if trust_pickle:
            return
        advice = advice if trust_pickle is not None else advice.replace(by_trust, "")
    raise UserError(f"it is {words}, not a checkpoint of torch.save; {advice}")


def more_than_tensors(name: str, trust_pickle: Trust) -> str:
    """Return the words for a file in which a class, of this name, stands where the weights should."""
    named = f" ({shown(name)})" if name else ""
    advice = "if you trust its source, add --trust_pickle" if trust_pickle is not None else "save its state_dict()"
    return f"{HOLDS_MORE}{named}, such as a pickled module, and reading it can run any code; {advice}"


def reading_error(path: Path, error: Exception, trust_pickle: Trust = None) -> UserError:
    """Return the one line for what was raised while a checkpoint was read."""
    if isinstance(error, UserError):
        joint = "" if str(error).startswith(HOLDS_MORE) else ":"
        return UserError(str(error) if str(path) in str(error) else f"{path}{joint} {error}")
    if is_out_of_memory(error):
        return no_memory(f"the checkpoint {path}", "what else runs on this machine, or --width where it was trained")
    if isinstance(error, OSError):
        return UserError(f"cannot read the checkpoint {path}: {error.strerror or error}")
    if isinstance(error, pickle.UnpicklingError) and "unsupported global" in str(error).lower():
        return UserError(f"{path} {more_than_tensors('', trust_pickle)}")
    protocol = re.search(r"Unsupported operand (\d+)", str(error))
    if protocol and int(protocol[1]) >= 0x80:
        advice = " or, if you trust its source, add --trust_pickle" if trust_pickle is not None else ""
        return UserError(
            f"{path} is pickled with a protocol that is not torch.save's own, and cannot be read safely; save it with "
            f"torch.save and without pickle_protocol{advice}"
        )
    if isinstance(error, AttributeError | ModuleNotFoundError):
        return UserError(
            f"{path} pickles a class that is not here ({first_line(error)}); save its state_dict() in its own code "
            "base and load that"
        )
    return UserError(f"{path} is damaged or not a checkpoint ({first_line(error)})")


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type where it has none; of `torch.load`'s, whose first lines
    advise to run code of the file, the one that names the cause."""
    if cause := re.search(r"WeightsUnpickler error:\s*(.+)", str(error)):
        return cause[1][:200]
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
