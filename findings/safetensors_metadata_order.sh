#!/usr/bin/env bash
# safetensors: the same tensors with the same metadata make files of different bytes, from process to process.
#
# Package: safetensors==0.8.0, numpy==2.4.6, Python 3.11, CPU.
# Behaviour: the entries of `metadata` are written in an order that differs in every process, so a file that is made
# again from the same content has another sha256. Without metadata, or with one entry, the bytes are the same. Whoever
# tells files apart by their hash should hash tensors, or keep all metadata as one entry.
# Output seen:
#   eight entries: several digests
#   one entry: one digest
#   no metadata: one digest
# Exit status: 0 where it is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cat > "$folder/write.py" <<'PY'
import hashlib
import sys

import numpy as np
from safetensors.numpy import save

entries = int(sys.argv[1])
metadata = {f"key{number}": str(number) for number in range(entries)} or None
print(hashlib.sha256(save({"weight": np.zeros(2, np.float32)}, metadata=metadata)).hexdigest())
PY
for case in "8 eight entries" "1 one entry" "0 no metadata"; do
    for _ in 1 2 3 4 5 6 7 8; do "$folder/venv/bin/python" "$folder/write.py" "${case%% *}"; done | sort -u > "$folder/digests"
    if [ "$(wc -l < "$folder/digests")" -gt 1 ]; then words="several digests"; else words="one digest"; fi
    echo "${case#* }: $words"
done | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
eight entries: several digests
one entry: one digest
no metadata: one digest
SEEN
