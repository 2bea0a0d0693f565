"""What thresholds are made of, kept with a checkpoint: any coverage can be answered later, without the images."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.blocks import Rows, row_blocks
from utils.errors import UserError

KEY = "held_out"  # of a checkpoint's content
MOST_IMAGES = 10**9


@dataclass(frozen=True)
class HeldOut:
    """Of n held-out images: the probability of the true class (n,), float32, and the class (n,), in its order; the
    temperature of the probabilities; shares (K,) of the prior that they stand for (`evaluation.priors`)."""

    probabilities: np.ndarray
    labels: np.ndarray
    temperature: float
    prior: list[float]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.prior)


@torch.no_grad()
def true_probabilities(logits: Rows, labels: Tensor, temperature: float = 1.0) -> np.ndarray:
    """Return the probability (N,), float32, of the class of each image by softmax(z / T) of logits z (N, K)."""
    labels, found = labels.to(logits.device), torch.empty(len(logits), dtype=torch.float32)
    for rows in row_blocks(logits):
        probability = (logits[rows].double() / temperature).softmax(dim=1)
        found[rows] = probability.gather(1, labels[rows, None])[:, 0].float().cpu()
    return found.numpy()


def measure_held_out(logits: Rows, labels: Tensor, temperature: float, prior: Sequence[float]) -> HeldOut:
    """Return what is kept of held-out logits (N, K) and labels (N,)."""
    order = torch.argsort(labels, stable=True).cpu()
    probabilities = true_probabilities(logits, labels, temperature)
    return HeldOut(probabilities[order.numpy()], labels.cpu()[order].numpy(), temperature, list(prior))


def pack_held_out(held_out: HeldOut) -> dict[str, Any]:
    """Return it as plain values, which a checkpoint and the header of a released file can hold."""
    counts = np.bincount(held_out.labels, minlength=held_out.num_classes)
    text = base64.b64encode(held_out.probabilities.astype("<f4").tobytes()).decode()
    return {
        "images": counts.tolist(),
        "probabilities": text,
        "temperature": held_out.temperature,
        "prior": held_out.prior,
    }


def unpack_held_out(record: dict[str, Any]) -> HeldOut:
    """Return what `pack_held_out` made plain values of; a UserError says what it cannot have written."""
    try:
        counts, prior = record["images"], record["prior"]
        if not all(type(count) is int and 0 <= count < MOST_IMAGES for count in counts):
            raise ValueError("class sizes")
        if not all(type(share) is float and 0 < share <= 1 for share in prior) or len(prior) != len(counts):
            raise ValueError("prior")
        probabilities = np.frombuffer(base64.b64decode(record["probabilities"], validate=True), dtype="<f4")
        temperature = record["temperature"]
        if len(probabilities) != sum(counts) or not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
            raise ValueError("probabilities")
        if type(temperature) not in (int, float) or not 0 < temperature < float("inf"):
            raise ValueError("temperature")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the record of the held-out images is damaged ({error})") from error
    return HeldOut(probabilities, np.arange(len(counts)).repeat(counts), float(temperature), prior)


def is_sound(record: object) -> bool:
    """Tell whether a value is what `pack_held_out` writes."""
    try:
        return isinstance(record, dict) and unpack_held_out(record) is not None
    except UserError:
        return False
