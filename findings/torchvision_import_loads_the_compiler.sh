#!/usr/bin/env bash
# Importing torchvision imports PyTorch's compiler stack.
#
# Packages: torch==2.14.1, torchvision==0.29.1, Python 3.11, CPU.
# Behaviour: `import torch` alone leaves torch._dynamo, torch._inductor and sympy alone. `import torchvision` imports
# all three, about a thousand modules more, and takes about as much CPU time again: over a second for every start of a
# command that needs a list of network names, a transform or a decoder. Nothing is compiled.
# Output seen:
#   after import torch: torch._dynamo False, torch._inductor False, sympy False
#   after import torchvision: torch._dynamo True, torch._inductor True, sympy True
#   more modules: over 800
# Exit status: 0 where it is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import sys


def loaded(after):
    names = ("torch._dynamo", "torch._inductor", "sympy")
    print(f"after import {after}:", ", ".join(f"{name} {name in sys.modules}" for name in names))
    return len(sys.modules)


import torch

before = loaded("torch")
import torchvision

print("more modules:", "over 800" if loaded("torchvision") - before > 800 else "fewer")
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
after import torch: torch._dynamo False, torch._inductor False, sympy False
after import torchvision: torch._dynamo True, torch._inductor True, sympy True
more modules: over 800
SEEN
