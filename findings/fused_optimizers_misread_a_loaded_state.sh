#!/usr/bin/env bash
# PyTorch: fused optimisers on a CPU pair a loaded momentum with the wrong weights where one is channels last.
#
# Package: torch==2.14.1, numpy==2.4.6, Python 3.11, CPU. 2.11.0 does the same.
# Behaviour: a convolution is trained and saved in the default memory format; another run loads weights and optimiser
# state with `load_state_dict`, its network being channels last. `load_state_dict` keeps the strides of the state. With
# `fused=True` SGD, Adam, AdamW and Adagrad then walk weights and state side by side in memory, in different orders: no
# error, and other weights. `fused=False` is right. On CUDA the same fused step raises RuntimeError.
# Output seen:
#   SGD: unfused as in the default format: True, fused: False
#   Adam: unfused as in the default format: True, fused: False
#   AdamW: unfused as in the default format: True, fused: False
#   Adagrad: unfused as in the default format: True, fused: False
# Exit status: 0 where it is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import copy

import torch
from torch import nn


def trained(kind, steps, fused, memory_format, before=None):
    """Train a convolution, from the state of `before` where it is given; return it with its optimiser."""
    torch.manual_seed(0)
    layer, images = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    if before is not None:
        layer.load_state_dict(before[0].state_dict())
    layer = layer.to(memory_format=memory_format)
    momentum = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(layer.parameters(), lr=0.01, fused=fused, **momentum)
    if before is not None:
        state = copy.deepcopy(before[1].state_dict())
        for group in state["param_groups"]:
            group["fused"] = fused
        optimizer.load_state_dict(state)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(images).square().mean().backward()
        optimizer.step()
    return layer, optimizer


for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad):
    saved = trained(kind, 2, False, torch.contiguous_format)
    right = trained(kind, 2, False, torch.contiguous_format, saved)[0].weight
    same = [
        torch.allclose(trained(kind, 2, fused, torch.channels_last, saved)[0].weight, right, atol=1e-5)
        for fused in (False, True)
    ]
    print(f"{kind.__name__}: unfused as in the default format: {same[0]}, fused: {same[1]}")
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
SGD: unfused as in the default format: True, fused: False
Adam: unfused as in the default format: True, fused: False
AdamW: unfused as in the default format: True, fused: False
Adagrad: unfused as in the default format: True, fused: False
SEEN
