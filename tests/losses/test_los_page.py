"""The worked example in `losses.los` is true: its lines run, and print what they say."""

import doctest

import losses.los


def test_the_worked_example_runs() -> None:
    outcome = doctest.testmod(losses.los)
    assert outcome.attempted >= 10 and outcome.failed == 0
