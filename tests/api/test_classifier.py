"""Re-training from arrays: heads equal those of the commands' loops, scikit-learn's conventions, refusals."""

import builtins
import io
import pickle
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch import nn

import api.classifier
from api import InputError, RetrainedClassifier, retrain
from api.training import default_smoothing, feature_scale
from engine.fit import make_sgd
from evaluation.metrics import classification_report, fit_temperature
from losses.los import optimal_gap, rest_target, torch_target
from methods.linear_probe import fit_probe
from methods.plan import compute_head, start_head, visiting_order
from methods.recipes import RECIPES
from settings.presets import ANY_SCALE_METHODS
from tests.api.arrays import COUNTS, HELD_OUT, TEST, TRAIN, WIDTH
from utils.errors import DivergedError, UserError

NAMES = np.array(["daisy", "oak", "rose", "tulip"])
PROBE = {"probe_decay": 1e-2}  # converges in a few steps
QUICK = {"epochs": 2, "device": "cpu", **PROBE}


def by_hand(method: str, seed: int = 0) -> torch.Tensor:
    """The logits of the test rows, of a head that PyTorch's own SGD has trained."""
    features, labels = torch.from_numpy(TRAIN[0]), torch.from_numpy(TRAIN[1])
    scale = (100 / features.double().square().sum(dim=1).mean()).sqrt().float()
    probe = fit_probe(features * scale, labels, 4, 1e-2)
    linear = nn.Linear(WIDTH, 4)
    with torch.no_grad():
        linear.weight.copy_(probe.weight)
        linear.bias.copy_(probe.bias)
    plan = RetrainedClassifier(method, epochs=2 if RECIPES[method].trains else None)._plan(4)[0]
    if not plan.recipe.trains:
        head = compute_head(plan, linear, features * scale, labels, COUNTS)
    else:
        head = start_head(plan, linear, seed, COUNTS)
        optimizer = make_sgd(head, 0.9, plan.weight_decay, False)
        assert plan.label_smooth is not None
        loss = nn.CrossEntropyLoss(label_smoothing=plan.label_smooth)
        for epoch in range(2):
            for group in optimizer.param_groups:
                group["lr"] = 5e-4 * (1 + np.cos(np.pi * epoch / 2)) / 2
            for rows in visiting_order(plan, labels, 4, seed, epoch).split(64):
                optimizer.zero_grad()
                loss(head(features[rows] * scale), labels[rows]).backward()
                optimizer.step()
    with torch.no_grad():
        return head(torch.from_numpy(TEST[0]) * scale)


@pytest.mark.parametrize("method", ["los", "cosine_los", "tau_norm"])
def test_a_head_is_the_one_that_a_plain_loop_trains(method: str) -> None:
    numbers = {"epochs": 2} if RECIPES[method].trains else {}
    classifier = retrain(*TRAIN, method, device="cpu", **numbers, **PROBE)
    logits = classifier.logits(TEST[0]).float()
    torch.testing.assert_close(logits, by_hand(method), rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(classifier.head_(torch.from_numpy(TEST[0])), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["los", "wb", "samn", "ridge", "knn", "simplex"])
def test_the_scale_of_features_changes_nothing(method: str) -> None:
    """Bit for bit where the factor is a power of two, else up to rounding, which a training makes larger."""
    numbers = {"epochs": 5} if RECIPES[method].trains else {}
    factors = {1.0: 0.0, 1 / 128: 0.0, 10.0: 5e-2, 0.1: 5e-2}
    found = {}
    for factor in factors:
        features = (np.float32(factor) * array for array in (TRAIN[0], TEST[0]))
        found[factor] = retrain(next(features), TRAIN[1], method, **numbers, **PROBE).logits(next(features))
    for factor, tolerance in factors.items():
        torch.testing.assert_close(found[factor], found[1.0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", [name for name in RECIPES if name != "offsets"])
def test_every_method_gives_probabilities(method: str) -> None:
    classifier = retrain(*TRAIN, method, **({"epochs": 1} if RECIPES[method].trains else {}), **PROBE)
    probabilities = classifier.predict_proba(TEST[0])
    assert probabilities.shape == (80, 4) and probabilities.dtype == np.float64 and np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert classifier.score(*TEST) > 0.3, "chance is 0.25"


def test_the_numbers_of_a_method_are_those_for_features_of_any_scale() -> None:
    assert ANY_SCALE_METHODS
    for method, numbers in ANY_SCALE_METHODS.items():
        assert dict(RetrainedClassifier(method)._plan(4)[0].parameters).items() >= numbers.items()
    own = RetrainedClassifier("tau_norm", parameters={"tau": 0.5})._plan(4)[0].parameters
    assert (own["tau"], own["norm_bias"]) == (0.5, "centre")


def test_labels_of_any_kind_are_given_back() -> None:
    plain, named = retrain(*TRAIN, **QUICK), retrain(TRAIN[0], NAMES[TRAIN[1]], **QUICK)
    assert named.classes_.tolist() == NAMES.tolist() and named.class_counts_.tolist() == COUNTS
    assert (named.predict(TEST[0]) == NAMES[plain.predict(TEST[0])]).all()
    assert named.score(TEST[0], NAMES[TEST[1]]) == plain.score(*TEST) == np.mean(plain.predict(TEST[0]) == TEST[1])
    odd = retrain(TRAIN[0], 100 - 7 * TRAIN[1], **QUICK)
    assert odd.classes_.tolist() == [79, 86, 93, 100] and odd.class_counts_.tolist() == COUNTS[::-1]


def test_arrays_of_other_libraries_are_taken() -> None:
    expected = retrain(*TRAIN, **QUICK).logits(TEST[0])
    table = pd.DataFrame(TRAIN[0], columns=[f"feature {k}" for k in range(WIDTH)])
    of_table = retrain(table, pd.Series(TRAIN[1]), **QUICK)
    of_tensor = retrain(torch.from_numpy(TRAIN[0]), torch.from_numpy(TRAIN[1]), **QUICK)
    of_lists = retrain(TRAIN[0].tolist(), TRAIN[1].tolist(), **QUICK)
    for classifier in (of_table, of_tensor, of_lists):
        assert torch.equal(classifier.logits(TEST[0]), expected)
    assert of_table.feature_names_in_.tolist() == table.columns.tolist()
    with pytest.raises(InputError, match="feature names should match"):
        of_table.predict(table[table.columns[::-1]])
    assert not hasattr(of_table.fit(*TRAIN), "feature_names_in_")


def test_held_out_rows_give_the_temperature() -> None:
    plain, held = retrain(*TRAIN, **QUICK), retrain(*TRAIN, held_out=HELD_OUT, **QUICK)
    assert plain.temperature_ == 1 and torch.equal(plain.logits(TEST[0]), held.logits(TEST[0]))
    expected = fit_temperature(plain.logits(HELD_OUT[0]), torch.from_numpy(HELD_OUT[1]))
    assert held.temperature_ == expected and expected != 1
    scaled = plain.logits(TEST[0]).double() / expected
    np.testing.assert_allclose(held.predict_proba(TEST[0]), scaled.softmax(dim=1).numpy())
    assert held.report(*TEST)["nll"] < plain.report(*TEST)["nll"]


def test_offsets_are_fitted_on_held_out_rows() -> None:
    fitted = retrain(*TRAIN, "offsets", held_out=HELD_OUT, **PROBE)
    assert (
        fitted.report(*HELD_OUT)["class_balanced"] > retrain(*TRAIN, "ce", **QUICK).report(*HELD_OUT)["class_balanced"]
    )
    with pytest.raises(InputError, match="the method 'offsets' is fitted on held-out rows of every class, and 4 of 4"):
        retrain(*TRAIN, "offsets")


def test_a_classifier_that_is_given_is_the_start() -> None:
    weight, bias = np.eye(4, WIDTH), np.array([3.0, 2.0, 1.0, 0.0])
    kept = retrain(*TRAIN, "ce", start=(weight, bias), epochs=1, learning_rate=0.0)
    np.testing.assert_allclose(kept.logits(TEST[0]), TEST[0] @ weight.T + bias, rtol=1e-4, atol=1e-4)
    without = retrain(*TRAIN, "ce", start=weight, epochs=1, learning_rate=0.0)
    np.testing.assert_allclose(without.logits(TEST[0]), TEST[0] @ weight.T, rtol=1e-4, atol=1e-4)
    for start in (weight[:3], weight[:, :5], (weight, bias[:3])):
        with pytest.raises(InputError, match=f"start needs a weight of 4 x {WIDTH} and a bias of 4 numbers"):
            retrain(*TRAIN, start=start)


def test_a_report_is_that_of_the_probabilities() -> None:
    classifier = retrain(TRAIN[0], NAMES[TRAIN[1]], **QUICK)
    expected = classification_report(classifier.logits(TEST[0]), torch.from_numpy(TEST[1]), np.array(COUNTS))
    found = classifier.report(TEST[0], NAMES[TEST[1]])
    assert {**found, "nll": 0} == {**expected, "nll": 0} and found["nll"] == pytest.approx(expected["nll"])
    assert found["medium"] is not None and found["many"] is None and 0 < found["few"] <= 100
    with pytest.raises(InputError, match="y has the label 'fern', which no training row has"):
        classifier.report(TEST[0][:1], ["fern"])
    assert classifier.score(TEST[0][:1], ["fern"]) == 0


def test_two_classes_have_one_decision() -> None:
    two = TRAIN[1] < 2
    classifier = retrain(TRAIN[0][two], NAMES[TRAIN[1]][two], **QUICK)
    decision = classifier.decision_function(TEST[0])
    assert decision.shape == (80,) and ((decision > 0) == (classifier.predict(TEST[0]) == "oak")).all()
    assert retrain(*TRAIN, **QUICK).decision_function(TEST[0]).shape == (80, 4)


def test_a_fit_repeats_bit_for_bit_and_by_its_seed() -> None:
    first, again, other = (retrain(*TRAIN, random_state=seed, **QUICK).logits(TEST[0]) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_nothing_is_printed_written_or_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.progress.SECONDS_BETWEEN_LINES", 0.0)  # where something is shown, it is shown at once
    out, before = io.StringIO(), [array.copy() for array in (*TRAIN, *HELD_OUT)]
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    with redirect_stdout(out), redirect_stderr(out):
        retrain(*TRAIN, "gcl", held_out=HELD_OUT, **QUICK).report(*TEST)
    assert out.getvalue() == "" and list(tmp_path.iterdir()) == []
    assert torch.equal(torch.get_rng_state(), state[0]) and np.random.get_state()[1].tolist() == state[1]
    for now, then in zip((*TRAIN, *HELD_OUT), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_fitted_classifier_is_pickled() -> None:
    classifier = retrain(*TRAIN, held_out=HELD_OUT, **QUICK)
    copy = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(copy.predict_proba(TEST[0]), classifier.predict_proba(TEST[0]))
    assert copy.get_params() == classifier.get_params()


# The smoothing


def test_few_classes_have_the_gap_of_a_hundred() -> None:
    hundred = optimal_gap(torch_target(0.98, 100))
    for classes in (2, 3, 10, 99):
        smoothing = default_smoothing("los", classes)
        assert smoothing is not None and smoothing < 0.98
        assert optimal_gap(torch_target(smoothing, classes)) == pytest.approx(hundred)
    rest = default_smoothing("lort", 10)
    assert rest is not None
    assert optimal_gap(rest_target(rest, 10)) == pytest.approx(optimal_gap(rest_target(0.98, 100)))
    assert default_smoothing("los", 100) == default_smoothing("los", 365) == 0.98
    assert default_smoothing("label_smooth", 10) == 0.1 and default_smoothing("ce", 10) is None
    assert retrain(*TRAIN, label_smooth=0.98, **QUICK).plan_.label_smooth == 0.98


def test_features_are_brought_to_the_reference_norm() -> None:
    features = torch.from_numpy(TRAIN[0])
    assert float((features * feature_scale(features)).square().sum(dim=1).mean()) == pytest.approx(100, rel=1e-5)
    assert feature_scale(torch.zeros(3, 2)) == 1
    assert feature_scale(1e25 * features) == pytest.approx(1e-25 * feature_scale(features))


# scikit-learn's conventions


def test_parameters_are_those_of_the_constructor() -> None:
    classifier = RetrainedClassifier("tau_norm", parameters={"tau": 0.5})
    assert repr(classifier) == "RetrainedClassifier(method='tau_norm', parameters={'tau': 0.5})"
    assert RetrainedClassifier(**classifier.get_params()).get_params() == classifier.get_params()
    assert classifier.set_params(method="ce", parameters=None) is classifier and classifier.method == "ce"
    with pytest.raises(InputError, match="invalid parameter 'tau' of RetrainedClassifier; it has method, epochs"):
        classifier.set_params(tau=1.0)
    sorted_out = retrain(*TRAIN, "tau_norm", tau=0.5, device="cpu")
    assert sorted_out.get_params()["parameters"] == {"tau": 0.5} and sorted_out.plan_.parameters["tau"] == 0.5


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks_pass() -> None:
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    classifier = RetrainedClassifier(epochs=1, parameters=PROBE, device="cpu")
    before = partial(checks.check_estimator, generate_only=True)  # of scikit-learn before 1.6
    passed = 0
    for estimator, check in getattr(checks, "estimator_checks_generator", before)(classifier):
        try:
            check(estimator)
            passed += 1
        except checks.SkipTest:
            continue
    assert passed > 40


def test_it_works_inside_of_scikit_learn() -> None:
    base, selection = pytest.importorskip("sklearn.base"), pytest.importorskip("sklearn.model_selection")
    pipeline = pytest.importorskip("sklearn.pipeline").make_pipeline
    scaler = pytest.importorskip("sklearn.preprocessing").StandardScaler
    classifier = RetrainedClassifier("logit_adjust_posthoc", device="cpu")
    assert base.is_classifier(classifier) and base.clone(classifier).get_params() == classifier.get_params()
    grid = {"retrainedclassifier__parameters": [{"tau": 0.0}, {"tau": 1.0}]}
    search = selection.GridSearchCV(pipeline(scaler(), classifier), grid, scoring="balanced_accuracy", cv=2)
    found = search.fit(*TRAIN).best_params_["retrainedclassifier__parameters"]
    assert found == {"tau": 1.0} and search.cv_results_["mean_test_score"][1] > search.cv_results_["mean_test_score"][0]


def test_without_scikit_learn_all_works_but_its_own_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refused(name: str, *more: Any, **others: Any) -> Any:
        if name.partition(".")[0] == "sklearn":
            raise ImportError(name)
        return real(name, *more, **others)

    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refused)
    with pytest.raises(InputError, match="not fitted yet"):
        RetrainedClassifier().predict(TEST[0])
    with pytest.warns(UserWarning, match="column-vector y"):
        classifier = retrain(TRAIN[0], TRAIN[1][:, None], **QUICK)
    assert classifier.score(*TEST) > 0.3 and not any(name.startswith("sklearn") for name in sys.modules)


# Refusals


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"method": "lossy"}, "unknown method 'lossy'; known: ce, label_smooth"),
        ({"method": 3}, "method must be the name of one, not 3"),
        ({"epochs": 0}, "epochs must be at least 1 and at most 1e.09, a whole number, not 0"),
        ({"epochs": 1.5}, "epochs must be .*a whole number, not 1.5"),
        ({"epochs": True}, "epochs must be .* not True"),
        ({"learning_rate": -1}, "learning_rate must be at least 0 and at most 1e.06, not -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be .* not nan"),
        ({"label_smooth": 1.0}, "label_smooth must be at least 0 and below 1, not 1.0"),
        ({"method": "ce", "label_smooth": 0.5}, "^label_smooth has no meaning for the method 'ce'; it belongs to "),
        ({"method": "lort", "label_smooth": 0.9}, "label_smooth 0.9 is outside 0 <= d < 0.75"),
        ({"tau": 1.0}, "^tau has no meaning for the method 'los'; it belongs to logit_adjust"),
        ({"method": "tau_norm", "tau": -1.0}, "^tau must be at least 0 and at most 10, not -1.0"),
        ({"method": "tau_norm", "epochs": 3}, "^epochs has no meaning for the method 'tau_norm': it is computed"),
        ({"method": "ncm", "batch_size": 8}, "^batch_size has no meaning for the method 'ncm'"),
        ({"method": "lws", "reinit": True}, "reinit: the method 'lws' keeps the weights"),
        ({"method": "cosine", "max_norm": 0.1}, "max_norm: the head of the method 'cosine' has no trained row norms"),
        ({"sampler": "best"}, "sampler must be one of instance, class_balanced, sqrt, progressive, not 'best'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"parameters": [1]}, "parameters must be a dictionary"),
        ({"parameters": {"epochs": 3}}, "parameters must not name epochs: it has an argument of its own"),
        ({"random_state": -1}, "random_state must be a whole number"),
        ({"random_state": None}, "random_state must be a whole number"),
        ({"device": "gpu"}, "device 'gpu' is none that PyTorch knows"),
        ({"device": "cuda:99"}, "device 'cuda:99': PyTorch finds"),
    ],
)
def test_a_number_that_cannot_be_is_refused_in_a_line(numbers: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        retrain(*TRAIN, **numbers)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, UserError)
    assert "--" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("features", "labels", "words"),
    [
        (TRAIN[0][0], TRAIN[1], "Expected 2D array, got 1D array"),
        (TRAIN[0][:0], TRAIN[1][:0], "0 sample"),
        (TRAIN[0][:, :0], TRAIN[1], "0 feature"),
        (np.full_like(TRAIN[0], np.nan), TRAIN[1], "X contains NaN"),
        (np.full_like(TRAIN[0], np.inf), TRAIN[1], "X contains infinity"),
        (TRAIN[0].astype(np.float64) * 1e300, TRAIN[1], "too large for float32"),
        (TRAIN[0].astype(np.float64) * 1e-42, TRAIN[1], "bring its numbers nearer to 1"),
        (TRAIN[0] * 1j, TRAIN[1], "Complex data not supported"),
        ([["a", "b"]] * 99, TRAIN[1], "X must hold numbers"),
        (sparse.csr_matrix(TRAIN[0]), TRAIN[1], "Sparse data are not supported"),
        (TRAIN[0], None, "requires y to be passed"),
        (TRAIN[0], TRAIN[1][:-1], "inconsistent numbers of samples: 99 rows of features, 98 labels"),
        (TRAIN[0], np.zeros(99), "all labels are of one class, 0.0"),
        (TRAIN[0], np.linspace(0, 1, 99), "Unknown label type: continuous"),
        (TRAIN[0], np.full(99, np.nan), "y contains NaN"),
        (TRAIN[0], np.zeros((99, 2)), "bad input shape"),
        (TRAIN[0], np.array([None, *TRAIN[1][1:]], dtype=object), "the labels cannot be sorted"),
    ],
)
def test_arrays_that_cannot_be_are_refused_in_a_line(features: Any, labels: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        retrain(features, labels, **QUICK)
    assert "\n" not in str(caught.value)


def test_held_out_rows_must_fit() -> None:
    with pytest.raises(InputError, match="the held_out features have 5 columns, X has 6"):
        retrain(*TRAIN, held_out=(HELD_OUT[0][:, :5], HELD_OUT[1]))
    with pytest.raises(InputError, match="held_out labels has the label 9"):
        retrain(*TRAIN, held_out=(HELD_OUT[0], HELD_OUT[1] * 9))
    with pytest.raises(InputError, match="and 3 of 4 have none: give held_out="):
        retrain(*TRAIN, "offsets", held_out=(HELD_OUT[0], HELD_OUT[1] * 0))


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match="X has 5 features, but RetrainedClassifier is expecting 6 features as input"):
        retrain(*TRAIN, **QUICK).predict(TEST[0][:, :5])


def test_a_loss_that_is_not_finite_ends_the_fit() -> None:
    classifier = RetrainedClassifier(
        "ce", learning_rate=1e6, epochs=30, parameters={"weight_decay": 1e3, **PROBE}, device="cpu"
    )
    with pytest.raises(DivergedError, match=r"the loss of the method 'ce' is not finite from step .* try a lower"):
        classifier.fit(*TRAIN)
    assert not hasattr(classifier, "head_")


def test_logits_come_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = retrain(*TRAIN, **QUICK)
    whole = classifier.logits(TEST[0])
    monkeypatch.setattr(api.classifier, "BLOCK", 7 * WIDTH)
    torch.testing.assert_close(classifier.logits(TEST[0]), whole)
