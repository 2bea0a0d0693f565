"""Test priors: exact Bayes on mixtures of Gaussians, weighted test sets, files that cannot be, and why no EM."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.priors.correction import (
    Prior,
    assumed_prior,
    corrected_predictions,
    held_out_prior,
    prior_offsets,
)
from evaluation.priors.files import read_prior, refuse_absent
from evaluation.priors.report import prior_report, prior_text
from evaluation.priors.shifted import FACTORS, shifted_profiles, shifted_shares, weighted_accuracy
from methods.priors import TRAINING_METHODS, recipe_prior
from methods.recipes import RECIPES
from runs.held_out import assumed_of
from utils.errors import UserError

COUNTS = torch.tensor([400, 120, 60, 30, 10])
NAMES = ["a", "b, c", "d", "e", "f"]


def prior_of(shares: Tensor) -> Prior:
    return Prior(shares.double() / shares.sum(), "given")


class Mixture:
    """Gaussians of variance 1 around K fixed means in the plane: everything about it is known."""

    def __init__(self, classes: int = 5, seed: int = 0) -> None:
        self.means = 1.5 * torch.randn(classes, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def draw(self, images: list[int], seed: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(len(images)).repeat_interleave(torch.tensor(images))
        noise = torch.randn(len(labels), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return self.means[labels] + noise, labels

    def logits(self, points: Tensor, prior: Prior) -> Tensor:
        """The posterior's logits under a prior, up to a constant a point."""
        return prior.shares.log() - torch.cdist(points, self.means).square() / 2


def test_the_correction_is_bayes_rule() -> None:
    mixture = Mixture()
    points, labels = mixture.draw([300] * 5, 1)
    source, target = prior_of(COUNTS), prior_of(COUNTS.flip(0))
    wanted = mixture.logits(points, target).softmax(dim=1)
    moved = 2 * mixture.logits(points, source) / 2 + prior_offsets(source, target)
    assert torch.allclose(moved.softmax(dim=1), wanted, atol=1e-12)
    # The temperature comes first: logits twice as large with T = 2 are the same classifier.
    found = corrected_predictions(2 * mixture.logits(points, source), prior_offsets(source, target), 2.0)
    assert torch.equal(found, wanted.argmax(dim=1))
    # No rule does better under the target prior than Bayes's.
    best = weighted_accuracy(found, labels, target.shares)
    for other in (source, prior_of(torch.ones(5)), prior_of(COUNTS.flip(0).sqrt())):
        predictions = mixture.logits(points, other).argmax(dim=1)
        assert weighted_accuracy(predictions, labels, target.shares) < best


@pytest.mark.parametrize("shares", [[1, 1, 1, 1, 1], [400, 120, 60, 30, 10], [1, 9, 2, 7, 3]])
@pytest.mark.parametrize("images", [[4000] * 5, [8000, 4000, 2000, 1000, 500]])
def test_the_prior_of_a_classifier_is_found_whatever_held_out_images_there_are(
    shares: list[int], images: list[int]
) -> None:
    mixture, truth = Mixture(), prior_of(torch.tensor(shares))
    points, labels = mixture.draw(images, 2)
    assumed = assumed_prior("uniform", COUNTS, "this")
    found = held_out_prior(3 * mixture.logits(points, truth), labels, assumed, temperature=3.0)
    assert float(found.shares.sum()) == pytest.approx(1)
    assert float((found.shares.log() - truth.shares.log()).abs().max()) < 0.15
    # The mean prediction, which gets in its place, is half-way between the prior and the images' own.
    mean = mixture.logits(points, truth).softmax(dim=1).mean(dim=0)
    if shares[0] == 400 and images[0] == 4000:
        assert float((mean.log() - truth.shares.log()).abs().max()) > 0.5


def test_without_held_out_images_the_prior_is_the_assumed_one_and_few_images_move_it_little() -> None:
    assumed = assumed_prior("train", COUNTS, "--method ce")
    none = held_out_prior(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), assumed)
    assert torch.allclose(none.shares, assumed.shares)
    # One sure and right image of the rarest class: without the images that say nothing it would get everything.
    one = held_out_prior(40 * torch.eye(5)[4:], torch.tensor([4]), assumed)
    assert float(one.shares[4]) < 3 * float(assumed.shares[4])
    assert torch.allclose(assumed.shares, COUNTS.double() / COUNTS.sum())
    assert float(assumed_prior("train", torch.tensor([3, 0]), "this").shares[1]) == pytest.approx(0.5 / 3.5)


def test_what_a_recipe_stands_for() -> None:
    assert {name for name in RECIPES if recipe_prior(name, None) == "train"} == set(TRAINING_METHODS)
    assert set(RECIPES) >= TRAINING_METHODS
    assert recipe_prior("ce", None, "class_balanced") == "uniform"
    assert [recipe_prior(None, loss) for loss in (None, "ce", "gala")] == ["train", "train", "uniform"]


@pytest.mark.parametrize(("loss", "kind"), [("ce", "train"), ("balanced_softmax", "uniform")])
def test_a_stage_1_that_auto_keeps_stands_for_what_its_own_loss_is_made_for(loss: str, kind: str) -> None:
    """The loss among the settings of stage 2 is nobody's."""
    settings = {"loss": "ce", "sampler": "class_balanced"}
    kept = {"method": "auto", "chosen": "stage 1", "settings": settings, "stage1": {"loss": loss}}
    found = assumed_of(kept, COUNTS.tolist())
    assert torch.equal(found.shares, assumed_prior(kind, COUNTS, "").shares)
    trained = {"method": None, "settings": {"loss": loss}, "stage1": None}
    assert torch.equal(assumed_of(trained, COUNTS.tolist()).shares, found.shares)


def test_test_sets_are_exponential_in_the_order_of_the_training_images() -> None:
    counts = np.array([20, 500, 60, 500, 5])
    shares = shifted_shares(counts, 16)
    assert shares.argsort(descending=True).tolist() == [1, 3, 2, 0, 4]
    assert float(shares[1] / shares[4]) == pytest.approx(16) and float(shares[1] / shares[3]) == pytest.approx(2)
    backward = shifted_shares(counts, 16, backward=True)
    assert float(backward[4] / backward[1]) == pytest.approx(16)
    profiles = shifted_profiles(counts)
    assert next(iter(profiles)) == f"forward-{FACTORS[0]}" and list(profiles)[5] == "uniform" and len(profiles) == 11
    assert all(float(each.sum()) == pytest.approx(1) for each in profiles.values())


def test_the_weighted_accuracy_is_what_leaving_images_out_gives_on_average() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(4).repeat(50)
    right = generator.random(200) < np.repeat([0.9, 0.6, 0.4, 0.1], 50)
    predictions = torch.from_numpy(np.where(right, labels, (labels + 1) % 4))
    kept = np.array([50, 25, 10, 5])
    drawn = [
        np.concatenate([generator.permutation(np.flatnonzero(labels == k))[: kept[k]] for k in range(4)])
        for _ in range(2000)
    ]
    mean = np.mean([100 * right[rows].mean() for rows in drawn])
    found = weighted_accuracy(predictions, torch.from_numpy(labels), torch.from_numpy(kept / kept.sum()))
    assert found == pytest.approx(mean, abs=0.2)
    # A class without images takes no part.
    absent = weighted_accuracy(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([0.2, 0.8]).double())
    assert absent == pytest.approx(50)


def test_the_report_has_both_sides() -> None:
    mixture = Mixture()
    points, labels = mixture.draw([50] * 5, 3)
    source, target = prior_of(COUNTS), prior_of(torch.ones(5))
    logits = {"plain": mixture.logits(points, source)}
    report = prior_report(logits, labels, COUNTS.numpy(), source, target)
    before, after = report["plain"]["before"], report["plain"]["after"]
    assert before["expected"] == pytest.approx(before["all"]) and after["all"] > before["all"] + 5
    assert report["flip"] is None and "under the prior" in prior_text(report)


def read(path: Path, text: str) -> Prior:
    path.write_text(text, encoding="utf-8")
    return read_prior(str(path), NAMES, COUNTS.tolist())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.2\n0.3\n0.1\n0.25\n0.15\n", ""),
        ('\ufeffclass,share\na,0.2\n"b, c",0.3\nf,0.15\nd,0.1\ne,0.25\n', ""),
        ('{"f": 0.15, "a": 0.2, "b, c": 0.3, "d": 0.1, "e": 0.25}', ""),
        ("20\n30\n10\n25\n15\n", "counts divided by their sum, 100"),
        ("0.2\n0.3\n0.1\n0.25\n0.153\n", "shares divided by their sum, 1.003"),
    ],
)
def test_the_three_forms_of_a_file(text: str, words: str, tmp_path: Path) -> None:
    prior = read(tmp_path / "prior", text)
    assert prior.shares.tolist() == pytest.approx([0.2, 0.3, 0.1, 0.25, 0.15], abs=3e-3)
    assert float(prior.shares.sum()) == pytest.approx(1) and prior.words.endswith(words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a JSON object"),
        ("0.2\n0.3\n0.5\n", "3 numbers, and there are 5 classes"),
        ("0.2\n0.3\n-0.1\n0.4\n0.2\n", "'d' is not a number of at least 0"),
        ("0.2\nnan\n0.3\n0.3\n0.2\n", "'b, c' is not a number"),
        ("inf\n1\n1\n1\n1\n", "'a' is not a number"),
        ("0.2\n0.3\n0.1\n0.25\n0.5\n", "sum to 1.35, not 1"),
        ("0\n0\n0\n0\n0\n", "all shares are 0"),
        ("a,0.5\nd,0.5\n", "has no share for 'b, c', 'e', 'f'"),
        ('a,1\n"b, c",1\nd,1\ne,1\nf,1\ng,1\n', "names 'g', which is no class"),
        ('a,1\n"b, c",1\nd,1\ne,1\nf,1\nf,1\n', "names a class twice"),
        ('{"a": true, "b, c": 1, "d": 1, "e": 1, "f": 1}', "not all numbers"),
        ('{"a": NaN, "b, c": 1, "d": 1, "e": 1, "f": 1}', "not a JSON object"),
        ("[1, 1, 1, 1, 1]", "does not say which class"),
        ('{"a": 1', "not a JSON object"),
        ("{" + '"a": [' * 3000, "not a JSON object"),
        ("a,b,c\n", "not two columns"),
    ],
)
def test_what_cannot_be_a_prior_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        read(tmp_path / "prior", text)


def test_other_files_and_a_share_of_0_for_a_class_that_occurs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_prior(str(tmp_path / "none"), NAMES, COUNTS.tolist())
    (tmp_path / "bytes").write_bytes(b"\xff\xfe0\x001")
    with pytest.raises(UserError, match="UTF-8"):
        read_prior(str(tmp_path / "bytes"), NAMES, COUNTS.tolist())
    prior = read(tmp_path / "prior", "1\n0\n1\n0\n2\n")
    refuse_absent(prior, torch.tensor([0, 2, 4]), NAMES)
    with pytest.raises(UserError, match=r"share 0 to 'b, c', of which there are test images"):
        refuse_absent(prior, torch.tensor([0, 1, 2, 4]), NAMES)
    assert read_prior("train", NAMES, COUNTS.tolist()).shares.tolist() == pytest.approx(
        (COUNTS / COUNTS.sum()).tolist()
    )


def em_prior(probabilities: Tensor, source: Tensor, steps: int) -> Tensor:
    """Plain EM for an unknown test prior (Saerens et al., 2002), which is not offered: see the test below."""
    prior = source.clone()
    for _ in range(steps):
        weighted = probabilities * (prior / source)
        prior = (weighted / weighted.sum(dim=1, keepdim=True)).mean(dim=0)
    return prior


def test_plain_em_for_an_unknown_prior_collapses_at_100_classes() -> None:
    """Why no unknown prior is estimated: with probabilities a little too flat, on images of which all classes are
    alike, it gives most classes next to nothing, and so costs accuracy. On few classes it does not."""
    lost, spread = {}, {}
    for classes in (4, 100):
        generator = torch.Generator().manual_seed(0)
        means = torch.randn(classes, 8, generator=generator).double()
        labels = torch.arange(classes).repeat_interleave(2000 // classes)
        points = means[labels] + torch.randn(len(labels), 8, generator=generator)
        logits = -torch.cdist(points, means).square() / 2
        uniform = torch.full((classes,), 1 / classes, dtype=torch.float64)
        found = em_prior((logits / 2).softmax(dim=1), uniform, 500)
        spread[classes] = float((found < 0.1 / classes).double().mean())
        corrected = (logits / 2 + found.log()).argmax(dim=1)
        hits = [(each == labels).double().mean() for each in (logits.argmax(dim=1), corrected)]
        lost[classes] = 100 * float(hits[0] - hits[1])
    assert spread[4] == 0 and abs(lost[4]) < 3
    assert spread[100] > 0.3 and lost[100] > 3, (spread, lost)
