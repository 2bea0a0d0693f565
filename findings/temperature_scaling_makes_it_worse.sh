#!/usr/bin/env bash
# TorchUncertainty: temperature scaling of an over-confident classifier ends at a temperature near 0, or below it.
#
# Packages: torch-uncertainty==0.13.0, torch==2.14.1, scikit-learn==1.9.1, scipy==1.17.1, Python 3.11, CPU.
# Behaviour: `TemperatureScaler.fit` looks for 1 / T by L-BFGS without line search, beginning at 1. The loss is convex,
# and nearly straight where logits are far too large, so that a step jumps past 0. From a best temperature of about 6
# on, what is found makes every probability 0 or 1, and the likelihood far worse than it was. A negative temperature is
# logged; a positive one near 0 is not.
# Why here: nearest class means and other closed forms have squared distances as logits, which need such temperatures.
# The data are scikit-learn's digits, with 80 to 2 training images a class. The logits are minus half the squared
# distances to the class means: log-likelihoods for a variance of 1.
# Output seen (negative log-likelihood of the images that no mean was made of, in nats):
#   logits as they are: NLL 35.63; best T 100.6, NLL 0.62; TorchUncertainty T below 0.1, NLL worse than before
#   a 16th of the logits: NLL 2.26; best T 6.3, NLL 0.62; TorchUncertainty T below 0.1, NLL worse than before
#   a 32nd of the logits: NLL 1.18; best T 3.1, NLL 0.62; TorchUncertainty T 3.1, NLL 0.62
# Exit status: 0 where it is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch-uncertainty[cpu]==0.13.0" torch==2.14.1 \
    scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import logging

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torch_uncertainty.post_processing import TemperatureScaler

logging.disable()
COUNTS = [80, 48, 29, 17, 10, 6, 4, 3, 2, 2]


def best(logits, labels):
    def loss(log_temperature):
        return cross_entropy(logits.double() / np.exp(log_temperature), labels).item()

    return np.exp(minimize_scalar(loss, bounds=(-8, 8), method="bounded").x)


def found(logits, labels):
    scaler = TemperatureScaler(model=None)
    scaler.fit(DataLoader(TensorDataset(logits, labels), batch_size=500), progress=False)
    return float(scaler.temperature[0])


pixels, labels = load_digits(return_X_y=True)
order = np.random.RandomState(0).permutation(len(labels))
pixels, labels = pixels[order], labels[order]
chosen = np.concatenate([np.flatnonzero(labels == label)[:count] for label, count in enumerate(COUNTS)])
rest = np.setdiff1d(np.arange(len(labels)), chosen)
means = np.stack([pixels[chosen][labels[chosen] == label].mean(axis=0) for label in range(len(COUNTS))])
distances = torch.from_numpy(((pixels[rest][:, None] - means) ** 2).sum(axis=2)).float()
labels = torch.from_numpy(labels[rest])
for name, share in (("logits as they are", 1), ("a 16th of the logits", 16), ("a 32nd of the logits", 32)):
    logits = -distances / 2 / share
    before = float(cross_entropy(logits, labels))
    line = f"{name}: NLL {before:.2f}"
    for library, fit in (("best", best), ("TorchUncertainty", found)):
        temperature = fit(logits, labels)
        loss = float(cross_entropy(logits / temperature, labels))
        line += f"; {library} T " + ("below 0.1" if temperature < 0.1 else f"{temperature:.1f}")
        line += ", NLL " + ("worse than before" if loss > before else f"{loss:.2f}")
    print(line)
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
logits as they are: NLL 35.63; best T 100.6, NLL 0.62; TorchUncertainty T below 0.1, NLL worse than before
a 16th of the logits: NLL 2.26; best T 6.3, NLL 0.62; TorchUncertainty T below 0.1, NLL worse than before
a 32nd of the logits: NLL 1.18; best T 3.1, NLL 0.62; TorchUncertainty T 3.1, NLL 0.62
SEEN
