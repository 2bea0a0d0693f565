#!/usr/bin/env bash
# imbalanced-learn: samplers that clean or thin out large classes delete whole rare ones, or the largest, unasked.
#
# Packages: imbalanced-learn==0.14.2, scikit-learn==1.9.1, numpy==2.4.6, scipy==1.17.1, Python 3.11.
# Behaviour: by default a cleaning under-sampler works on "not minority": all classes but the smallest one. Of two
# classes this spares the rare one. Of a long tail it spares one of many rare ones. The others have neighbours of larger
# classes, and are what it removes. On a long-tailed part of scikit-learn's digits, EditedNearestNeighbours leaves the
# two largest classes whole and three classes of the tail without an image. OneSidedSelection deletes the largest class
# altogether. Nothing is said, and a classifier trained on the result does not know these classes.
# A list of the classes to thin out, sampling_strategy=[0, 1, 2], keeps the tail.
# Output seen (images of each class):
#   before:                          100 60 36 22 13 8 5 3 2 1
#   EditedNearestNeighbours:         100 60 32 21 13 2 0 0 0 1
#   NeighbourhoodCleaningRule:       98 60 35 21 13 6 4 0 0 1
#   OneSidedSelection:               0 25 1 1 1 1 1 1 1 1
#   EditedNearestNeighbours, listed: 100 60 32 22 13 8 5 3 2 1
# Exit status: 0 where it is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet imbalanced-learn==0.14.2 scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
cat > "$folder/show.py" <<'PY'
import numpy as np
from imblearn.under_sampling import EditedNearestNeighbours, NeighbourhoodCleaningRule, OneSidedSelection
from sklearn.datasets import load_digits

COUNTS = [100, 60, 36, 22, 13, 8, 5, 3, 2, 1]
pixels, labels = load_digits(return_X_y=True)
order = np.random.RandomState(0).permutation(len(labels))
pixels, labels = pixels[order], labels[order]
chosen = np.concatenate([np.flatnonzero(labels == label)[:count] for label, count in enumerate(COUNTS)])


def tell(name, classes):
    print(f"{name + ':':33}" + " ".join(map(str, np.bincount(classes, minlength=len(COUNTS)))))


tell("before", labels[chosen])
for name, sampler in (
    ("EditedNearestNeighbours", EditedNearestNeighbours()),
    ("NeighbourhoodCleaningRule", NeighbourhoodCleaningRule()),
    ("OneSidedSelection", OneSidedSelection(random_state=0)),
    ("EditedNearestNeighbours, listed", EditedNearestNeighbours(sampling_strategy=[0, 1, 2])),
):
    tell(name, sampler.fit_resample(pixels[chosen], labels[chosen])[1])
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
before:                          100 60 36 22 13 8 5 3 2 1
EditedNearestNeighbours:         100 60 32 21 13 2 0 0 0 1
NeighbourhoodCleaningRule:       98 60 35 21 13 6 4 0 0 1
OneSidedSelection:               0 25 1 1 1 1 1 1 1 1
EditedNearestNeighbours, listed: 100 60 32 22 13 8 5 3 2 1
SEEN
