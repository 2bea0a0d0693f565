#!/usr/bin/env bash
# PyTorch: batch norm changes its running statistics in place, and its operators' schemas say that nothing is changed.
#
# Package: torch==2.14.1, numpy==2.4.6, Python 3.11, CPU.
# Behaviour: `aten::batch_norm` and `aten::native_batch_norm` write to the arguments running_mean and running_var in
# training mode, while `is_mutable` of their schemas is False. A tool that records operators by their schemas, to undo or
# replay a training step, therefore misses the one write of a network's forward pass. In-place operators are declared.
# Output seen:
#   native_batch_norm: declared to change an argument: False, changed one: True
#   batch_norm: declared to change an argument: False, changed one: True
#   add_: declared to change an argument: True, changed one: True
# Exit status: 0 where it is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import torch

aten = torch.ops.aten
inputs, mean, variance = torch.arange(12.0).reshape(4, 3), torch.zeros(3), torch.ones(3)
statistics = (None, None, mean, variance, True, 0.1, 1e-5)
for name, operator, arguments in (
    ("native_batch_norm", aten.native_batch_norm.default, (inputs, *statistics)),
    ("batch_norm", aten.batch_norm.default, (inputs, *statistics, False)),
    ("add_", aten.add_.Tensor, (mean, 1)),
):
    before = mean.clone()
    operator(*arguments)
    declared, changed = operator._schema.is_mutable, not torch.equal(before, mean)
    print(f"{name}: declared to change an argument: {declared}, changed one: {changed}")
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
native_batch_norm: declared to change an argument: False, changed one: True
batch_norm: declared to change an argument: False, changed one: True
add_: declared to change an argument: True, changed one: True
SEEN
