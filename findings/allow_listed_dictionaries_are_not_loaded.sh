#!/usr/bin/env bash
# torch.load(weights_only=True): a dictionary of a class is refused though the class is on the allow-list.
#
# Package: torch==2.14.1, Python 3.11, CPU.
# Behaviour: for a checkpoint with a collections.defaultdict, or any subclass of dict such as the attribute dictionaries
# that hold hyper-parameters, the error advises torch.serialization.safe_globals([THE_CLASS]). With this advice followed
# the file is refused all the same, by another error, as soon as the dictionary has an entry. The same with a subclass
# of list works, and so does an empty dictionary, so that a test without entries passes and real files fail.
# Output seen:
#   defaultdict with an entry, as advised: Can only SETITEM
#   defaultdict without entries, as advised: loaded
#   subclass of dict with an entry, as advised: Can only SETITEM
#   subclass of list with an entry, as advised: loaded
# Exit status: 0 where it is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import io
import pickle
import re
from collections import defaultdict

import torch


class Attributes(dict):
    pass


class Layers(list):
    pass


for name, value, advised in (
    ("defaultdict with an entry", defaultdict(int, epoch=3), [defaultdict, int]),
    ("defaultdict without entries", defaultdict(int), [defaultdict, int]),
    ("subclass of dict with an entry", Attributes(lr=0.1), [Attributes]),
    ("subclass of list with an entry", Layers([64]), [Layers]),
):
    file = io.BytesIO()
    torch.save({"weight": torch.ones(2), "kept": value}, file)
    file.seek(0)
    with torch.serialization.safe_globals(advised):
        try:
            said = "loaded" if torch.load(file, weights_only=True)["kept"] == value else "changed"
        except pickle.UnpicklingError as error:
            said = re.search(r"Can only \w+", str(error))[0]
    print(f"{name}, as advised: {said}")
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
defaultdict with an entry, as advised: Can only SETITEM
defaultdict without entries, as advised: loaded
subclass of dict with an entry, as advised: Can only SETITEM
subclass of list with an entry, as advised: loaded
SEEN
