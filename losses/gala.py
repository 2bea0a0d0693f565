"""GALA: margins from the gradients that each class's classifier has gathered so far (arXiv 2403.09036, ICASSP 2024)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.functional import Loss, add_constants, known_labels, of_label, true_class
from utils.distributed import sum_over_processes

# Keeps the logarithms finite before a class was seen: an absolute floor on sums of batch means, the released code's.
FLOOR = 1e-3


class GALA(Loss):
    """Cross-entropy of z_j + lambda1 log(theta_j) - lambda2 log(phi_y) for the classes j != y of a sample of class y.

    Gradient-aware logit adjustment (GALA), arXiv 2403.09036, ICASSP 2024.

    g = (p - onehot) / B is the gradient of the loss on the adjusted logits of a batch. theta_j gathers |g_j| of the
    samples of class j, phi_y |g_c| of the samples of class y over the other classes c != y; for a softmax the two are
    equal but for rounding. Both are buffers (K,) float32 of the state_dict, start at 0 and never decay; B is the batch
    of all processes together. The margins of a step come from the steps before it, so a step gathers once: one call a
    batch. In eval mode the loss is plain cross-entropy and nothing is gathered.

    `gala_margin`: "paper" leaves the true logit alone; "released" shifts it like the others, as the released code does,
    so that phi, one number a sample, cancels and lambda2 has no effect.
    `gala_accumulation`: "single" sums the batches' gradients; "double" sums that running sum after every step, as the
    released code does, so that the gradient of step s weighs T - s + 1 at step T.
    """

    plain_logits: ClassVar[bool] = True
    lambda1: Tensor
    lambda2: Tensor
    on_target: Tensor
    carried: Tensor
    theta: Tensor
    phi: Tensor
    theta_sum: Tensor
    phi_sum: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        *,
        lambda1: float = 1.0,
        lambda2: float = 1.0,
        gala_margin: str = "paper",
        gala_accumulation: str = "single",
    ) -> None:
        super().__init__()
        # The two choices are numbers too, so that instances that differ in them can be stacked.
        on_target, carried = float(gala_margin == "released"), float(gala_accumulation == "double")
        add_constants(self, lambda1=lambda1, lambda2=lambda2, on_target=on_target, carried=carried)
        for name in ("theta", "phi", "theta_sum", "phi_sum"):
            self.register_buffer(name, torch.zeros(len(class_counts)))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats; in train mode, gather this batch's gradients."""
        if not self.training:
            return F.cross_entropy(logits, labels)
        true = true_class(logits, labels)
        known, at = known_labels(labels)
        adjusted = logits + self.margins(true, at).to(logits.dtype)
        self.gather(adjusted.detach(), true, known)
        return F.cross_entropy(adjusted, labels)

    def margins(self, true: Tensor, labels: Tensor) -> Tensor:
        """Return what is added to the logits (B, K) of samples with labels (B,), which the mask `true` (B, K) marks."""
        drawn = self.lambda1 * (self.theta + FLOOR).log()
        pushed = self.lambda2 * (self.phi + FLOOR).log()
        margins = drawn - of_label(pushed, labels)
        return torch.where(true, self.on_target.to(margins.dtype) * margins, margins)

    @torch.no_grad()
    def gather(self, adjusted: Tensor, true: Tensor, known: Tensor) -> None:
        """Add the gradients of a batch with logits `adjusted` (B, K) to the statistics, in place.

        Samples that `known` (B,) does not mark are none of it; a batch of such alone changes nothing.
        """
        probability = adjusted.float().softmax(dim=1)
        theta = ((1 - probability) * true).sum(dim=0)
        phi = (probability.masked_fill(true, 0).sum(dim=1, keepdim=True) * true).sum(dim=0)
        size = known.sum()[None].to(theta)
        # One collective a step; the sums of all processes over the batch of all processes.
        total = sum_over_processes(torch.cat([theta, phi, size]))
        theta, phi = (total[:-1] / total[-1].clamp(min=1)).chunk(2)
        for accumulated, running, batch in ((self.theta, self.theta_sum, theta), (self.phi, self.phi_sum, phi)):
            running.add_(batch)
            carried = self.carried.to(accumulated.dtype) * accumulated + running
            accumulated.copy_(torch.where(total[-1] > 0, carried, accumulated))
