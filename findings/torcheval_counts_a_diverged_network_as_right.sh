#!/usr/bin/env bash
# torcheval: top-5 accuracy is 100 % for a network that has diverged, and for a classifier that starts from zeros.
#
# Packages: torcheval==0.0.7, torch==2.14.1, numpy==2.4.6, Python 3.11, CPU.
# Behaviour: with k of 2 or more, `multiclass_accuracy` calls an image right where fewer than k logits are above that of
# its class. No logit is above NaN, and none above its equal. So logits that are all NaN, or all the same, are right for
# every image. `hit_rate` counts in the same way, and by `reciprocal_rank` all of them come first. With k = 1 the
# largest is looked for instead: top-1 and top-5 of one tensor contradict each other.
# Why here: heads on frozen features often start from zeros, and some diverge. A choice of the best epoch by top-5
# accuracy then takes the first epoch, or a broken one.
# Output seen (20 images of 10 classes, 2 of each; torch.topk takes 5 different classes whatever the logits are):
#   zeros: topk 50 %, torcheval k=1 10 %, k=2 100 %, k=5 100 %, hit rate 100 %, reciprocal rank 1.0
#   NaN: topk 50 %, torcheval k=1 10 %, k=2 100 %, k=5 100 %, hit rate 100 %, reciprocal rank 1.0
#   one class ahead: topk 50 %, torcheval k=1 10 %, k=2 100 %, k=5 100 %, hit rate 100 %, reciprocal rank 0.55
#   all different: topk 50 %, torcheval k=1 10 %, k=2 20 %, k=5 50 %, hit rate 50 %, reciprocal rank 0.29
# Exit status: 0 where it is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torcheval==0.0.7 torch==2.14.1 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import torch
from torcheval.metrics.functional import hit_rate, multiclass_accuracy, reciprocal_rank

K = 10
labels = torch.arange(K).repeat(2)
ahead = torch.zeros(len(labels), K)
ahead[:, 0] = 1
for name, logits in (
    ("zeros", torch.zeros(len(labels), K)),
    ("NaN", torch.full((len(labels), K), float("nan"))),
    ("one class ahead", ahead),
    ("all different", torch.arange(K, 0, -1.0).repeat(len(labels), 1)),
):
    shares = {
        "topk": (logits.topk(5).indices == labels[:, None]).any(dim=1).double().mean(),
        "torcheval k=1": multiclass_accuracy(logits, labels),
        "k=2": multiclass_accuracy(logits, labels, k=2),
        "k=5": multiclass_accuracy(logits, labels, k=5),
        "hit rate": hit_rate(logits, labels, k=5).mean(),
    }
    rank = round(float(reciprocal_rank(logits, labels).mean()), 2)
    words = [f"{key} {100 * float(share):.0f} %" for key, share in shares.items()]
    print(f"{name}: " + ", ".join([*words, f"reciprocal rank {rank}"]))
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
zeros: topk 50 %, torcheval k=1 10 %, k=2 100 %, k=5 100 %, hit rate 100 %, reciprocal rank 1.0
NaN: topk 50 %, torcheval k=1 10 %, k=2 100 %, k=5 100 %, hit rate 100 %, reciprocal rank 1.0
one class ahead: topk 50 %, torcheval k=1 10 %, k=2 100 %, k=5 100 %, hit rate 100 %, reciprocal rank 0.55
all different: topk 50 %, torcheval k=1 10 %, k=2 20 %, k=5 50 %, hit rate 50 %, reciprocal rank 0.29
SEEN
