"""What a file is by its first bytes and the names in its archive, whatever it is called."""

import io
import struct
import zipfile
from typing import IO

SAFETENSORS, TORCH, FEATURES = "safetensors", "torch", "npz"  # what is read here
PICKLE = b"\x80"
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save before PyTorch 1.6 begins

AS_STATE_DICT = "save its state_dict() with torch.save in its own code base and load that"
UNPACK = "unpack it first"
# How files of other kinds begin: the bytes, from which position on, what that is, and what to do.
STARTS: tuple[tuple[bytes, int, str, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", 0, "an HDF5 file, as Keras writes it", "save PyTorch weights: the layers differ in form"),
    (b"GGUF", 0, "a GGUF file", AS_STATE_DICT),
    (b"TFL3", 4, "a TensorFlow Lite model", "save the weights with PyTorch"),
    (b"version https://git-lfs", 0, "a pointer of git-lfs and not the file itself", "fetch it: git lfs pull"),
    (b"\x1f\x8b", 0, "packed with gzip", UNPACK),
    (b"\xfd7zXZ\x00", 0, "packed with xz", UNPACK),
    (b"BZh", 0, "packed with bzip2", UNPACK),
    (b"7z\xbc\xaf'\x1c", 0, "packed with 7-Zip", UNPACK),
    (b"Rar!", 0, "packed with RAR", UNPACK),
    (b"(\xb5/\xfd", 0, "packed with zstd", UNPACK),
    (b"ustar", 257, "a tar archive", UNPACK),
    (b"\x93NUMPY", 0, "a single array of numpy", "save a state dict with torch.save"),
    (b"\x89PNG", 0, "an image", "name a checkpoint"),
    (b"\xff\xd8\xff", 0, "an image", "name a checkpoint"),
    (b"%PDF", 0, "a PDF", "name a checkpoint"),
)
TEXTS: tuple[tuple[bytes, str, str], ...] = (
    (b"<", "a web page, perhaps the error of a download", "download the file anew"),
    (b"{", "JSON", "name the file of the weights"),
)
# The end of a table of LevelDB, which TensorFlow's `.index` files are.
TABLE_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
TENSORFLOW = "a TensorFlow checkpoint"
LOAD_SCRIPT = f"{AS_STATE_DICT}, or, if you trust its source, add --trust_pickle"
LONGEST_HEADER = 100_000_000  # bytes, safetensors' own limit


def recognise(file: IO[bytes]) -> tuple[str, str | None]:
    """Return what an opened file is, in a word or in words, and what to do about one that cannot be read here.

    That is None for `SAFETENSORS`, `TORCH` and `FEATURES`, and for what is not known (an empty word).
    """
    file.seek(0)
    start = file.read(512)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if start[:2] == b"PK" and zipfile.is_zipfile(file):
        return in_archive(file)
    if len(start) > 9 and start[8:9] == b"{" and 2 <= struct.unpack("<Q", start[:8])[0] <= min(size, LONGEST_HEADER):
        return SAFETENSORS, None
    for magic, place, words, advice in STARTS:
        if start[place : place + len(magic)] == magic:
            return words, advice
    for begin, words, advice in TEXTS:
        if start.lstrip()[:1] == begin:
            return words, advice
    return binary(file, start, size)


def binary(file: IO[bytes], start: bytes, size: int) -> tuple[str, str | None]:
    """Return what a file is that begins with a pickle, or with fields of a protocol buffer."""
    if start.startswith(MAGIC):
        return TORCH, None
    if start[:1] == PICKLE and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle that torch.save did not write", AS_STATE_DICT
    if size > 48:
        file.seek(-8, io.SEEK_END)
        if file.read() == TABLE_END:
            return TENSORFLOW, "save the weights with PyTorch"
    # Field 1 is a version in both: 1 of a SavedModel, 3 and more of ONNX, whose next field is a text or the graph.
    if start[:3] == b"\x08\x01\x12":
        return "a TensorFlow SavedModel", "save the weights with PyTorch"
    if start[:1] == b"\x08" and 3 <= start[1:2].ljust(1)[0] < 32 and start[2:3] in (b"\x12", b"\x1a", b"\x3a", b"\x42"):
        return "an ONNX model", "save the state_dict() of the PyTorch model that it was exported from"
    return "", None


def in_archive(file: IO[bytes]) -> tuple[str, str | None]:
    """Return what a zip archive is, by the names in it."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    file.seek(0)
    inner = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in inner:
        return "a TorchScript archive (torch.jit.save)", LOAD_SCRIPT
    if {"archive_format", "serialized_exported_program.json"} & inner:
        return "a program of torch.export", "save the state_dict() of the module that it was exported from"
    if "data.pkl" in inner or "data.pkl" in names:
        return TORCH, None
    if {"config.json", "model.weights.h5"} <= set(names):
        return "a model of Keras", "save PyTorch weights: the layers differ in form"
    if names and all(name.endswith(".npy") for name in names):
        return FEATURES, None
    return "a zip archive that torch.save did not write", UNPACK
