"""A script that wanted Hugging Face's `datasets` and found ours is told so in one line."""

import importlib
from typing import Any

import pytest

import datasets
from datasets import Profile, load_dataset
from datasets.namesake import HUGGING_FACE
from utils.errors import UserError

OTHER = r"this is the package of the long-tailed data sets in .*datasets, not Hugging Face's library of that name"


@pytest.mark.parametrize("name", sorted(HUGGING_FACE))
def test_importing_a_name_of_the_other_library_says_which_this_is(name: str) -> None:
    with pytest.raises(ImportError, match=f"'datasets' has no {name}: {OTHER}.*keep the script outside of") as caught:
        exec(f"from datasets import {name}")
    assert "\n" not in str(caught.value)
    with pytest.raises(ImportError, match=OTHER):
        getattr(datasets, name)


def test_other_names_are_missing_as_anywhere() -> None:
    assert not hasattr(datasets, "__version__")  # what libraries look for
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from datasets import nothing")
    assert not HUGGING_FACE & set(dir(datasets))
    assert importlib.import_module("datasets.features") is datasets.features


def call(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        (("imdb",), {}, "takes a name and a profile"),
        (("glue", "mrpc"), {}, "takes a name and a profile"),
        (("path",), {"split": "train"}, "'split'"),
        (("csv",), {"data_files": "a.csv"}, "'data_files'"),
        (("digits", Profile()), {"streaming": True}, "'streaming'"),
        ((), {"path": "imdb"}, "'path'"),
        (("a", "b", "c", "d", "e"), {}, "too many positional arguments"),
    ],
)
def test_a_call_of_the_other_function_says_which_this_is(args: Any, kwargs: Any, words: str) -> None:
    message = call(*args, **kwargs)
    assert message.startswith("load_dataset") and words in message and "not Hugging Face's library" in message


def test_a_call_of_this_function_is_its_own() -> None:
    data = load_dataset(name="digits", profile=Profile(imb_ratio=25))
    assert data.num_classes == 10 and data.imbalance_factor == 31
    assert load_dataset.__doc__ and load_dataset.__name__ == "load_dataset"
    assert call("imdb", Profile()).startswith("unknown data set 'imdb'; known: ")
