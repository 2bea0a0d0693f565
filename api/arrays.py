"""Arrays that a program brings, made into what is trained on; refused in words where they cannot be.

The words of a refusal are those that scikit-learn has for it, which its estimator checks look for.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.features import EXACT
from utils.errors import UserError

Array = Any  # a numpy array, a tensor, a table of pandas, or lists of numbers


class InputError(UserError, ValueError):
    """What is wrong with an argument, in one line: a ValueError, as scikit-learn has it."""


def as_array(values: Array) -> np.ndarray:
    """Return whatever holds values as a numpy array, on the CPU. Raises InputError for a sparse matrix."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    if hasattr(values, "toarray") and hasattr(values, "nnz"):
        raise InputError("Sparse data are not supported: give a dense array, as X.toarray() makes it")
    return np.asarray(values)


def column_names(features: Array) -> np.ndarray | None:
    """Return the names (d,) of the columns of a table of pandas, where all are texts; None for other arrays."""
    names = getattr(features, "columns", None)
    if names is None or not all(isinstance(name, str) for name in names):
        return None
    return np.asarray(names, dtype=object)


def feature_rows(features: Array, name: str = "X") -> np.ndarray:
    """Return features (N, d) as finite float32. Raises InputError for anything that cannot be that."""
    array = as_array(features)
    if array.dtype.kind == "c":
        raise InputError(f"Complex data not supported: {name} has the type {array.dtype}")
    if array.ndim != 2:
        raise InputError(
            f"Expected 2D array, got {array.ndim}D array instead: {name} needs a row an image and a column a feature. "
            "Reshape your data with array.reshape(-1, 1) for one feature, array.reshape(1, -1) for one image"
        )
    if len(array) == 0:
        raise InputError(f"Found array with 0 sample(s) (shape={array.shape}) while a minimum of 1 is required.")
    if array.shape[1] == 0:
        raise InputError(f"Found array with 0 feature(s) (shape={array.shape}) while a minimum of 1 is required.")
    if array.dtype.kind in "iu" and (int(array.max()) > EXACT or int(array.min()) < -EXACT):
        raise InputError(f"Input {name} contains whole numbers beyond {EXACT:,}, which float32 rounds: scale them")
    try:
        array = array.astype(np.float64 if array.dtype.kind == "O" else array.dtype, copy=False)
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(array, dtype=np.float32)
    except ValueError as error:
        raise InputError(f"{name} must hold numbers: {error}") from error
    if np.isnan(rows).any():
        raise InputError(f"Input {name} contains NaN.")
    if np.isinf(rows).any():
        raise InputError(f"Input {name} contains infinity or a value too large for float32.")
    return rows


def label_row(labels: Array, rows: int, name: str = "y") -> np.ndarray:
    """Return labels (N,) of whole numbers or texts, one for each of `rows`.

    Raises InputError for other numbers, for another shape, and for none. A column (N, 1) is taken, with a warning.
    """
    if labels is None:
        raise InputError(f"the classifier requires {name} to be passed, but the target {name} is None")
    array = as_array(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        warnings.warn(_conversion_warning(name), stacklevel=4)
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(f"bad input shape {array.shape}: {name} needs one label a row, a 1d array")
    if len(array) != rows:
        raise InputError(f"inconsistent numbers of samples: {rows} rows of features, {len(array)} labels in {name}")
    if array.dtype.kind in "fc":
        if not np.isfinite(array).all():
            raise InputError(f"Input {name} contains NaN or infinity.")
        if (array != np.floor(array.real)).any():
            raise InputError(f"Unknown label type: continuous. {name} must hold classes: whole numbers or texts")
    return array


def known_labels(labels: np.ndarray, classes: np.ndarray, name: str = "y") -> np.ndarray:
    """Return the number (N,) of the class of each label; InputError names one that no training row has."""
    order = {value: number for number, value in enumerate(classes.tolist())}
    found = [order.get(value, -1) for value in labels.tolist()]
    strange = next((value for value, number in zip(labels.tolist(), found, strict=True) if number < 0), None)
    if strange is not None:
        raise InputError(f"{name} has the label {strange!r}, which no training row has")
    return np.asarray(found, dtype=np.int64)


def class_numbers(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes (K,), sorted, and the number of each row's class (N,). Raises InputError for a single class,
    and for labels that cannot be sorted."""
    try:
        classes, numbers = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise InputError(f"the labels cannot be sorted, as texts and numbers together: {error}") from error
    if len(classes) < 2:
        raise InputError(f"a classifier needs two classes or more; all labels are of one class, {classes.tolist()[0]}")
    return classes, numbers.reshape(-1)


def _conversion_warning(name: str) -> Warning:
    """Return scikit-learn's warning of a column of labels, a UserWarning where scikit-learn is missing."""
    text = f"A column-vector {name} was passed when a 1d array was expected: it is taken as one, as {name}.ravel()"
    try:
        from sklearn.exceptions import DataConversionWarning
    except ImportError:
        return UserWarning(text)
    return DataConversionWarning(text)
