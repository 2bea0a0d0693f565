"""How even the accuracies of the classes are: their means of three kinds, and the worst of them.

All / many / medium / few hide a class that is given up. Du and Wu ("No One Left Behind: Improving the Worst Categories
in Long-Tailed Learning", CVPR 2023, arXiv 2303.03630) report the harmonic mean and the lowest; Yu, Du and Wu ("Reviving
Undersampling for Long-Tailed Learning", arXiv 2401.16811) the geometric mean too.
"""

import math

import numpy as np

# What an accuracy of 0 counts as in the harmonic and geometric mean, in percent: 1e-3 as a fraction, as in the code of
# Yu, Du and Wu (arXiv 2401.16811). With 0 itself one lost class makes both means 0, whatever the others are.
ZERO_AS = 0.1
WORST = 10  # classes, and percent of the classes
MEASURES = ("class_balanced", "harmonic", "geometric", "worst", "worst_10", "worst_10_percent")


def class_measures(accuracy: np.ndarray) -> dict[str, float | None]:
    """Return what the accuracies (K,) of the classes, in percent and NaN where there is none, have in common.

    `class_balanced` is their mean (Brodersen et al., ICPR 2010), `harmonic` and `geometric` the other two means, in
    which a class of accuracy 0 counts as `ZERO_AS`, `worst` the lowest, `worst_10` the mean of the ten lowest, and
    `worst_10_percent` that of the lowest tenth of the classes, rounded up. A class without an evaluated image is in
    none of them. None where there is nothing to measure: no class, or fewer than ten for `worst_10`.
    """
    known = np.sort(accuracy[~np.isnan(accuracy)])
    if len(known) == 0:
        return dict.fromkeys(MEASURES)
    positive = np.where(known > 0, known, ZERO_AS)
    tenth = math.ceil(len(known) * WORST / 100)
    return {
        "class_balanced": float(known.mean()),
        "harmonic": float(1 / (1 / positive).mean()),
        "geometric": float(np.exp(np.log(positive).mean())),
        "worst": float(known[0]),
        "worst_10": float(known[:WORST].mean()) if len(known) >= WORST else None,
        "worst_10_percent": float(known[:tenth].mean()),
    }


def describe_test_images(images: np.ndarray) -> dict[str, int]:
    """Return how the test images (K,) of the classes are spread: in all, of the smallest and the largest class that has
    any, and the number of classes without one."""
    present = images[images > 0]
    smallest, largest = (int(present.min()), int(present.max())) if len(present) else (0, 0)
    return {
        "images": int(images.sum()),
        "smallest_class": smallest,
        "largest_class": largest,
        "absent_classes": int((images == 0).sum()),
    }
