"""Numbers that were chosen on other data are noticed: by the images of training, whatever share was held out."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from datasets import Profile, load_dataset
from datasets.identity.content import with_identity
from datasets.long_tail import LongTailedData
from tables.unified import other_data, selection_data


def context_of(data: LongTailedData, *, held_out_share: bool = False) -> Any:
    return SimpleNamespace(data=with_identity(data, held_out_share=held_out_share))


def chosen_on(context: Any) -> pd.DataFrame:
    """A selection as it is written and read: what it says of its data is said in the first row alone."""
    return pd.DataFrame({"method": ["ce", "los"], "data": [json.dumps(selection_data(context)), None]})


@pytest.fixture(scope="module")
def digits() -> LongTailedData:
    return load_dataset("digits", Profile(imb_ratio=25))


def test_the_same_data_whatever_is_held_out_or_tested(digits: LongTailedData) -> None:
    known = chosen_on(context_of(digits))
    assert other_data(known, context_of(digits)) == []
    share = load_dataset("digits", Profile(imb_ratio=25, holdout=0.2, holdout_seed=1))
    assert other_data(known, context_of(share, held_out_share=True)) == []
    tested = replace(digits, test=replace(digits.test, images=255 - digits.test.images))
    assert other_data(known, context_of(tested)) == []


def test_other_pixels_labels_and_classes_are_said(digits: LongTailedData) -> None:
    known, train = chosen_on(context_of(digits)), digits.train
    pixels = train.images.copy()
    pixels[3] = 255 - pixels[3]
    labels = train.labels.copy()
    one, another = 0, int(np.flatnonzero(labels != labels[0])[0])
    labels[[one, another]] = labels[[another, one]]
    for other in (replace(train, images=pixels), replace(train, labels=labels), train.take(np.arange(1, len(train)))):
        found = other_data(known, context_of(replace(digits, train=other)))
        assert found == ["other training images (content)"]
    named = replace(digits, class_names=[f"digit {name}" for name in digits.class_names])
    renamed = replace(named, class_names=["nought", *named.class_names[1:]])
    assert other_data(chosen_on(context_of(named)), context_of(renamed)) == ["other class names"]


def test_what_was_not_recorded_is_not_known(digits: LongTailedData) -> None:
    context = context_of(digits)
    assert other_data(pd.DataFrame({"method": ["ce"]}), context) == []
    assert other_data(pd.DataFrame({"method": ["ce"], "data": [None]}), context) == []
    assert other_data(pd.DataFrame({"method": ["ce"], "data": ["{"]}), context) == ["unknown ones"]
