#!/usr/bin/env bash
# Class weights with label smoothing: PyTorch has two losses for one set of soft labels.
#
# Package: torch==2.14.1, Python 3.11, CPU.
# Behaviour: nn.CrossEntropyLoss(weight=w, label_smoothing=s) on class indices, and nn.CrossEntropyLoss(weight=w) on the
# soft labels that this smoothing stands for, are equal where all weights are 1. With other weights the first is divided
# by the sum of the weights of the labels in the batch, the second by the number of samples: they differ by the mean
# weight of the batch. So a class-weighted smoothed loss has another scale in every batch, or not, depending on how its
# labels are written down: here by a factor of 100 between a batch of the frequent class and one of the rare class.
# Each rule is in PyTorch's documentation; that they disagree for one loss is not.
# Output seen:
#   weights of 1: 2.3134 2.3134 ratio 1.0
#   frequent class alone: 109.9807 10.9981 ratio 0.1
#   rare class alone: 1.1410 11.4095 ratio 10.0
# Exit status: 0 where it is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import torch
from torch import nn

K, s = 10, 0.98
logits = torch.linspace(-1, 1, 4 * K, dtype=torch.float64).reshape(4, K)
ones = torch.ones(K, dtype=torch.float64)
weights = torch.linspace(0.1, 10, K, dtype=torch.float64)  # of classes 0 (frequent) to 9 (rare)
for name, weight, classes in (
    ("weights of 1", ones, [0, 3, 6, 9]),
    ("frequent class alone", weights, [0] * 4),
    ("rare class alone", weights, [9] * 4),
):
    labels = torch.tensor(classes)
    soft = torch.full((4, K), s / K, dtype=torch.float64)
    soft[torch.arange(4), labels] += 1 - s
    by_index = nn.CrossEntropyLoss(weight=weight, label_smoothing=s)(logits, labels)
    by_soft_label = nn.CrossEntropyLoss(weight=weight)(logits, soft)
    print(f"{name}: {by_index:.4f} {by_soft_label:.4f} ratio {by_soft_label / by_index:.1f}")
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
weights of 1: 2.3134 2.3134 ratio 1.0
frequent class alone: 109.9807 10.9981 ratio 0.1
rare class alone: 1.1410 11.4095 ratio 10.0
SEEN
