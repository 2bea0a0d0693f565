"""Cross-entropy against a target (y_true, y_other): plain, label-smoothed and over-smoothed alike."""

from torch import Tensor, nn

from losses.los import ONE_HOT, Target


class CrossEntropy(nn.Module):
    """Mean of -y_true log p_y - y_other sum_{j != y} log p_j over a batch; p is the softmax of the logits.

    `target` ONE_HOT is plain cross-entropy; with `torch_target(s, K)` it equals
    `nn.CrossEntropyLoss(label_smoothing=s)`.
    """

    def __init__(self, target: Target = ONE_HOT) -> None:
        super().__init__()
        self.true, self.other = target

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats."""
        log_probability = logits.log_softmax(dim=1)
        loss = (self.other - self.true) * log_probability.gather(1, labels[:, None]).mean()
        if self.other > 0:
            loss = loss - self.other * log_probability.sum(dim=1).mean()
        return loss
