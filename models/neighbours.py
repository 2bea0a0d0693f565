"""A classifier that keeps its training features and lets the nearest of them vote."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linear_head import Linear, nonzero_norms
from utils.errors import UserError

NEIGHBOURS = 200  # training features that vote
MOST_BYTES = 1 << 28  # of kept features, which every checkpoint holds
BLOCK = 1 << 24  # cosines that are held at once
SMALLEST = 1e-30  # of a vote


class Neighbours(Linear):
    """z_k = log(sum of exp(s (cos(f, f_i) - 1)) over those of the 200 nearest training features f_i that are of class
    k, divided by the images n_k of the class): the weighted nearest neighbours of Wu et al., "Unsupervised Feature
    Learning via Non-Parametric Instance Discrimination", CVPR 2018, arXiv 1805.01978 (s = 1 / 0.07), with the
    votes over the class counts. Features are centred on the mean of the training images before their cosine is taken.

    A class without a vote has the smallest that there is, so that every logit is finite. The features are kept in half
    precision, of length 1, in the state: `kept` (N, d), with `kept_labels` (N,), `counts` (K,) and `centre` (d,). They
    are empty until `keep` fills them or `make_room` prepares for a state. `weight` and `bias` are those of the linear
    classifier, and unused. Nothing is trained.
    """

    kept: Tensor
    kept_labels: Tensor
    counts: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, *, scale: float = 14.3) -> None:
        super().__init__(linear)
        self.freeze()
        device = self.weight.device
        self.register_buffer("kept", torch.zeros(0, self.in_features, dtype=torch.float16, device=device))
        self.register_buffer("kept_labels", torch.zeros(0, dtype=torch.long, device=device))
        self.register_buffer("counts", self.full(1.0, self.out_features))
        self.register_buffer("centre", self.full(0.0, self.in_features))
        self.register_buffer("scale", self.full(scale))

    @torch.no_grad()
    def keep(self, features: Tensor, labels: Tensor, class_counts: Tensor | Sequence[int]) -> None:
        """Keep features (N, d) with their labels (N,); a UserError refuses more than 256 MiB of them."""
        size = 2 * features.numel()
        if size > MOST_BYTES:
            raise UserError(
                f"--method knn keeps every training feature: {features.shape[0]} x {features.shape[1]} of them are "
                f"{size >> 20} MiB, more than {MOST_BYTES >> 20} MiB; --method ncm keeps one row a class"
            )
        self.make_room({"kept": features})
        device = self.weight.device
        mean = features.double().mean(dim=0)
        self.centre.copy_(mean)
        centred = features.double() - mean
        self.kept.copy_(centred / nonzero_norms(centred))
        self.kept_labels.copy_(labels)
        self.counts.copy_(torch.as_tensor(class_counts, dtype=torch.float64, device=device))

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Give the kept features the number of rows that `kept` (N, d) has in a state."""
        rows, device = len(state["kept"]), self.weight.device
        self.kept = torch.zeros(rows, self.in_features, dtype=torch.float16, device=device)
        self.kept_labels = torch.zeros(rows, dtype=torch.long, device=device)

    def effective_weight(self) -> Tensor | None:
        """Return None instead of rows (K, d): features are compared with those of the training images."""
        return None

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, d) to logits (B, K)."""
        blocks = features.split(max(BLOCK // max(len(self.kept), 1), 1))
        return torch.cat([self._votes(block) for block in blocks])

    def _votes(self, features: Tensor) -> Tensor:
        centred = features - self.centre.to(features.dtype)
        cosines = F.linear(centred / nonzero_norms(centred), self.kept.to(features.dtype))
        nearest = cosines.topk(min(NEIGHBOURS, len(self.kept)), dim=1)
        scale = self.scale.to(features.dtype)
        weights = (scale * (nearest.values - 1)).exp()
        votes = weights.new_zeros(len(features), self.out_features)
        votes = votes.scatter_add(1, self.kept_labels[nearest.indices], weights)
        return votes.clamp(min=SMALLEST).log() - self.counts.to(features.dtype).log()
