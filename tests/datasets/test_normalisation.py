"""The constants that normalise an image: what a command line may say, what it comes to, what is refused."""

import pytest
import torch

from datasets import cifar
from datasets.augment.normalisation import (
    NAMED,
    constants_text,
    describe_constants,
    read_constants,
    recorded_constants,
    with_given,
)
from datasets.device_images import DeviceImages
from datasets.digits import AUGMENTATION as DIGITS
from datasets.digits import load_digits
from datasets.long_tail import Augmentation, Profile
from datasets.on_disk.long_tailed import AUGMENTATION as ON_DISK
from settings.command_line import parse_command
from settings.declare import EVALUATE
from utils.errors import UserError


def test_the_names_are_the_constants_of_the_data_sets() -> None:
    assert NAMED["cifar"] == (cifar.AUGMENTATION.mean, cifar.AUGMENTATION.std)
    assert NAMED["imagenet"] == (ON_DISK.mean, ON_DISK.std)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["imagenet"], "imagenet"),
        (["0.5", "0.25", "0.125"], "0.5,0.25,0.125"),
        (["0.5,0.25,0.125"], "0.5,0.25,0.125"),
        (["0.5,", "0.25,", "0.125"], "0.5,0.25,0.125"),
        (["0.1307"], "0.1307,0.1307,0.1307"),
        ([".50"], "0.5,0.5,0.5"),
    ],
)
def test_numbers_may_be_apart_by_commas_or_spaces(words: list[str], text: str) -> None:
    assert constants_text(words) == text == constants_text([text])
    flags = ["--mean", *words, *([] if text in NAMED else ["--std", "0.2"]), "--dataset", "digits"]
    settings = parse_command(EVALUATE, "", flags).settings
    assert (settings.mean, settings.dataset) == (text, "digits")


@pytest.mark.parametrize("words", [[], ["one"], ["0.5", "0.5"], ["nan"], ["1e999"], ["cifar", "imagenet"], ["0.5;0.4"]])
def test_other_words_are_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match="neither one number, nor three, nor cifar or imagenet"):
        constants_text(words)


def test_constants_come_in_pairs_and_in_units_of_one() -> None:
    assert read_constants(None, None) is None
    assert read_constants("cifar", None) == read_constants("cifar", "cifar") == NAMED["cifar"]
    assert read_constants("0,0,0", "1,1,1") == ((0, 0, 0), (1, 1, 1))
    for mean, std in (("0.5,0.5,0.5", None), (None, "0.5,0.5,0.5"), (None, "cifar"), ("cifar", "imagenet")):
        with pytest.raises(UserError, match="go together"):
            read_constants(mean, std)
    for mean, std, name in (("123,117,104", "1,1,1", "mean"), ("0,0,0", "58,57,57", "std"), ("0,0,0", "0,1,1", "std")):
        with pytest.raises(UserError, match=f"--{name} .* is not in units of"):
            read_constants(mean, std)


def test_what_is_given_takes_the_place_of_the_data_sets_own() -> None:
    assert with_given(DIGITS, None, None, None) == DIGITS
    assert with_given(DIGITS, None, None, "on") == Augmentation(1, True, DIGITS.mean, DIGITS.std)
    found = with_given(ON_DISK, "cifar", None, "off")
    assert (found.mean, found.std, found.mirror) == (*NAMED["cifar"], False)
    assert describe_constants(ON_DISK) == "mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (imagenet), mirrored"
    assert describe_constants(DIGITS).endswith("std 0.354 0.354 0.354, never mirrored")


def test_pixels_are_normalised_with_them() -> None:
    split = load_digits(Profile(imb_ratio=1)).test
    given = with_given(DIGITS, "0.5,0.25,0.125", "0.2,0.4,0.8", None)
    pixels = torch.from_numpy(split.images).double() / 255
    expected = (pixels - torch.tensor([0.5, 0.25, 0.125])) / torch.tensor([0.2, 0.4, 0.8])
    found = DeviceImages(split, given, torch.device("cpu")).plain(slice(None))
    torch.testing.assert_close(found.double(), expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)


def test_a_strangers_record_is_taken_as_it_is_or_not_at_all() -> None:
    sound = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "mirror": False, "size": 32}
    assert recorded_constants(sound) == Augmentation(0, False, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    for wrong in (None, "text", [], {**sound, "mean": "abc"}, {**sound, "std": [1, 2]}, {"mean": [0, 0, 0]}):
        assert recorded_constants(wrong) is None
