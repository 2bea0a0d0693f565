"""Files of CIFAR: arrays are made by stand-ins, so numpy's own unpickling is never asked."""

import pickle
from pathlib import Path

import numpy as np

from datasets.cifar import PlainUnpickler, read_pickle


def test_arrays_of_cifar_are_read_whatever_wrote_them(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(4, 6)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for data in (array, np.asfortranarray(array)):
            (tmp_path / "train").write_bytes(pickle.dumps({"data": data, "labels": [1, 2]}, protocol))
            content = read_pickle(tmp_path / "train")
            assert content["labels"] == [1, 2] and content["data"].dtype == np.uint8
            assert content["data"].shape == data.shape and np.array_equal(content["data"], data)
    python2 = (  # as the published files: bytes are a text there
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02K\x03"
        b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06"
        b"\x00\x01\x7f\x80\xfe\xfftbs."
    )
    (tmp_path / "train").write_bytes(python2)
    assert read_pickle(tmp_path / "train")["data"].tolist() == [[0, 1, 127], [128, 254, 255]]


def test_no_array_of_cifar_takes_numbers_for_addresses(tmp_path: Path) -> None:
    """A type or a size that was changed makes no array; nothing of numpy's is called with it."""
    whole = pickle.dumps({"data": np.arange(64, dtype=np.float64), "labels": [0]}, 2)
    for before, after in ((b"f8", b"O8"), (b"f8", b"V8"), (b"f8", b"f2"), (b"K@\x85", b"K\xff\x85")):
        assert whole.count(before) == 1
        (tmp_path / "train").write_bytes(whole.replace(before, after))
        data = read_pickle(tmp_path / "train")["data"]
        assert not isinstance(data, np.ndarray)
    calls = [(module, value) for module, value in PlainUnpickler.ALLOWED.items() if module[0].startswith("numpy")]
    assert all(value.__module__.startswith("datasets.") for _, value in calls)
