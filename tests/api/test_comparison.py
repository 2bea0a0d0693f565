"""Several methods on the same arrays: each as alone, the table, the paired differences."""

import numpy as np
import pytest
import torch

from api import Comparison, InputError, RetrainedClassifier, compare, retrain
from api.comparison import COLUMNS
from evaluation.intervals.bootstrap import DRAWS
from tests.api.arrays import TEST, TRAIN

METHODS = ("ce", "los", "lws", "logit_adjust_posthoc", "balanced_softmax")


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(*TRAIN, *TEST, METHODS, device="cpu", probe_decay=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_ends_where_it_ends_alone(comparison: Comparison, method: str) -> None:
    alone = retrain(*TRAIN, method, device="cpu", probe_decay=1e-2)
    torch.testing.assert_close(comparison.classifiers[method].logits(TEST[0]), alone.logits(TEST[0]))
    assert comparison.reports[method]["all"] == pytest.approx(100 * alone.score(*TEST))


def test_the_table_has_a_row_a_method(comparison: Comparison) -> None:
    table = comparison.table
    assert table.index.tolist() == list(METHODS) and table.columns.tolist() == list(COLUMNS)
    for name, report in comparison.reports.items():
        expected = [np.nan if report[column] is None else report[column] for column in COLUMNS]
        np.testing.assert_array_equal(table.loc[name], expected)
    assert comparison.best() == table["class_balanced"].idxmax() and comparison.best("nll") == table["nll"].idxmin()
    assert table.loc["logit_adjust_posthoc", "few"] > table.loc["ce", "few"]


def test_differences_are_paired(comparison: Comparison) -> None:
    found = comparison.differences("ce")
    rows = found[found["measure"] == "all"].set_index("method")
    assert sorted(rows.index) == sorted(set(METHODS) - {"ce"}) and (rows["draws"] == DRAWS).all()
    value = comparison.table.loc["los", "all"] - comparison.table.loc["ce", "all"]
    assert rows.loc["los", "value"] == pytest.approx(value)
    assert (rows["low"] <= rows["value"]).all() and (rows["value"] <= rows["high"]).all()


def test_classifiers_of_ones_own_are_compared_and_left_alone() -> None:
    own = {f"tau {tau}": RetrainedClassifier("tau_norm", parameters={"tau": tau}) for tau in (0.0, 0.5)}
    own["other seed"] = RetrainedClassifier(epochs=1, random_state=5)
    comparison = compare(*TRAIN, *TEST, own)
    assert list(comparison.classifiers) == list(own) and not any(hasattr(each, "head_") for each in own.values())
    assert comparison.classifiers["tau 0.5"].plan_.parameters["tau"] == 0.5
    alone = RetrainedClassifier(**own["other seed"].get_params()).fit(*TRAIN)
    torch.testing.assert_close(comparison.classifiers["other seed"].logits(TEST[0]), alone.logits(TEST[0]))


def test_what_cannot_be_compared_is_refused(comparison: Comparison) -> None:
    for methods in ("los", (), {}):
        with pytest.raises(InputError, match="methods must be a list of names"):
            compare(*TRAIN, *TEST, methods)
    with pytest.raises(InputError, match="unknown method 'lossy'"):
        compare(*TRAIN, *TEST, ["ce", "lossy"])
    with pytest.raises(InputError, match="epochs: classifiers that are given have their own numbers"):
        compare(*TRAIN, *TEST, {"a": RetrainedClassifier()}, epochs=1)
    with pytest.raises(InputError, match="test_labels has the label 7, which no training row has"):
        compare(*TRAIN, TEST[0], TEST[1] + 7, ["ncm"])
    with pytest.raises(InputError, match="unknown method 'lossy'; known: ce, los"):
        comparison.differences("lossy")
    with pytest.raises(InputError, match="unknown measure 'luck'"):
        comparison.best("luck")
    with pytest.raises(InputError, match="no method has a value of 'many'"):
        comparison.best("many")
