"""From the prior that a classifier's probabilities stand for to that of the images it is used on.

By Bayes' rule p(y | x) is proportional to p(x | y) p(y). Where only the class shares p(y) change, the new probabilities
are the old ones times the ratio of the new prior and the old (Saerens, Latinne and Decaestecker, "Adjusting the Outputs
of a Classifier to New a Priori Probabilities", Neural Computation 2002, equation 2.4). What has to be known is the old
prior. It is that of the training images for plain cross-entropy alone: a method that balances works against it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.blocks import Rows, largest, row_blocks
from utils.text import counted

TRAIN, UNIFORM = "train", "uniform"  # priors that a method can be made for
# Images that say nothing, whose prediction is the assumed prior itself, added to each class's held-out images: a class
# with one or none of its own does not decide.
PSEUDO_IMAGES = 1.0
MOST_CLASSES = 4096  # whose prior is solved for: the equations take K^2 numbers


@dataclass(frozen=True)
class Prior:
    """Shares (K,) of the classes, float64 with the sum 1, and in words where they are from."""

    shares: Tensor
    words: str


def assumed_prior(kind: str, class_counts: Tensor, of: str) -> Prior:
    """Return the prior that a classifier is made for, `kind` "train" or "uniform", from its training images (K,).

    `of` names the method. A class without training images counts as one with half an image.
    """
    if kind == UNIFORM:
        shares = torch.full((len(class_counts),), 1 / len(class_counts), dtype=torch.float64)
        return Prior(shares, f"every class alike, as {of} is made for")
    counts = class_counts.double().clamp(min=0.5)
    return Prior(counts / counts.sum(), f"that of the training images, as {of} leaves it")


@torch.no_grad()
def held_out_prior(logits: Rows, labels: Tensor, assumed: Prior, temperature: float = 1.0) -> Prior:
    """Return the prior that softmax(z / T) stands for, from held-out logits z (N, K) with labels (N,).

    Let m_jk be the mean probability of class k over the images of class j. Probabilities that are exact under a prior q
    have the mean q over images that follow q: sum_j q_j m_jk = q_k. So q is the stationary distribution of m, however
    many held-out images a class has. To each class's images `PSEUDO_IMAGES` are added whose prediction is the `assumed`
    prior: without held-out images the result is that one.
    """
    classes = logits.shape[1]
    if classes > MOST_CLASSES:
        return Prior(assumed.shares, f"{assumed.words} (above {MOST_CLASSES} classes it is not measured)")
    labels, start = labels.to(logits.device), assumed.shares.to(logits.device)
    means = torch.zeros(classes, classes, dtype=torch.float64, device=logits.device)
    for rows in row_blocks(logits):
        means.index_add_(0, labels[rows], (logits[rows].double() / temperature).softmax(dim=1))
    count = torch.bincount(labels, minlength=classes).double()
    means = (means + PSEUDO_IMAGES * start) / (count + PSEUDO_IMAGES)[:, None]
    equations = means.T - torch.eye(classes, dtype=torch.float64, device=logits.device)
    equations[-1] = 1  # one of them follows from the others: the sum takes its place
    right = torch.zeros(classes, dtype=torch.float64, device=logits.device)
    right[-1] = 1
    shares = torch.linalg.solve(equations, right).clamp(min=torch.finfo(torch.float64).tiny)
    words = f"that of its own predictions on {counted(len(labels), 'held-out image')}"
    return Prior((shares / shares.sum()).cpu(), words)


def prior_offsets(source: Prior, target: Prior) -> Tensor:
    """Return what is added to logits over their temperature (K,), float64: log target - log source.

    A class of the share 0 in `target` gets -inf and is never predicted.
    """
    return target.shares.log() - source.shares.log()


def corrected_predictions(logits: Rows, offsets: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the class (N,) of the largest of z / T + `offsets` (K,) for logits z (N, K)."""
    predictions = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    offsets = offsets.to(logits.device)
    for rows in row_blocks(logits):
        predictions[rows] = largest(logits[rows].double() / temperature + offsets)
    return predictions
