#!/usr/bin/env bash
# Hugging Face datasets: making whole-number labels a ClassLabel gives class 10 the label 2.
#
# Package: datasets==5.2.0, Python 3.11.
# Behaviour: `train_test_split(stratify_by_column=...)` takes a ClassLabel column only, and `class_encode_column` makes
# one. It turns numbers into texts first and sorts these. From eleven classes on labels are permuted: 0, 1, 10, 11, 2.
# What were numbers remain numbers, and nothing is said. `cast_column` with `ClassLabel(num_classes=12)` keeps them.
# Why here: classes of long-tailed sets are often numbered by their size. Counts of training images, shot groups and a
# saved classifier then belong to other classes.
# Output seen:
#   stratify: ValueError
#   before:              0 1 2 3 4 5 6 7 8 9 10 11
#   class_encode_column: 0 1 4 5 6 7 8 9 10 11 2 3
#   cast_column:         0 1 2 3 4 5 6 7 8 9 10 11
#   ten classes:         0 1 2 3 4 5 6 7 8 9
# Exit status: 0 where it is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
cat > "$folder/show.py" <<'PY'
from datasets import ClassLabel, Dataset


def tell(name, numbered):
    print(f"{name + ':':20}", *numbered["label"])


twelve = Dataset.from_dict({"label": list(range(12))})
try:
    twelve.train_test_split(test_size=0.5, stratify_by_column="label")
except ValueError:
    print("stratify: ValueError")
tell("before", twelve)
tell("class_encode_column", twelve.class_encode_column("label"))
tell("cast_column", twelve.cast_column("label", ClassLabel(num_classes=12)))
tell("ten classes", twelve.select(range(10)).class_encode_column("label"))
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
stratify: ValueError
before:              0 1 2 3 4 5 6 7 8 9 10 11
class_encode_column: 0 1 4 5 6 7 8 9 10 11 2 3
cast_column:         0 1 2 3 4 5 6 7 8 9 10 11
ten classes:         0 1 2 3 4 5 6 7 8 9
SEEN
