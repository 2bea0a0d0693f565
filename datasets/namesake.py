"""What a script meets that wanted Hugging Face's library `datasets` and found this package, in whose folder it lies."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

from datasets.long_tail import Profile
from utils.errors import UserError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# The names of Hugging Face's package that scripts import most; none of them is a name of this one.
HUGGING_FACE = frozenset(
    (
        "Audio",
        "ClassLabel",
        "Dataset",
        "DatasetBuilder",
        "DatasetDict",
        "Features",
        "Image",
        "IterableDataset",
        "IterableDatasetDict",
        "Sequence",
        "Value",
        "concatenate_datasets",
        "get_dataset_config_names",
        "get_dataset_split_names",
        "interleave_datasets",
        "load_dataset_builder",
        "load_from_disk",
        "load_metric",
    )
)


def which_package() -> str:
    """Say in a few words which package this is, and what to do who wanted the other."""
    folder = Path(__file__).resolve().parent
    return (
        f"this is the package of the long-tailed data sets in {folder}, not Hugging Face's library of that name: "
        f"for that one, keep the script outside of {folder.parent}"
    )


def missing_name(name: str) -> NoReturn:
    """Say that the package has no `name`, for its `__getattr__`.

    Raises ImportError for a name of Hugging Face's, for an import statement would swallow the text of any other error,
    and AttributeError for all others.
    """
    if name in HUGGING_FACE:
        raise ImportError(f"'datasets' has no {name}: {which_package()}")
    raise AttributeError(f"module 'datasets' has no attribute '{name}'")


def refuse_other_calls(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let `function`, which takes a `profile`, raise UserError where it is called as Hugging Face's is called."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            given = signature.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise UserError(f"{function.__name__}: {error}; {which_package()}") from None
        if not isinstance(given.get("profile"), Profile):
            wanted = f"{function.__name__} takes a name and a profile, as Profile(imb_ratio=100)"
            raise UserError(f"{wanted}; {which_package()}")
        return function(*args, **kwargs)

    return checked
