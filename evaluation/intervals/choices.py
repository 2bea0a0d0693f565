"""By what a classifier is chosen on held-out images (`evaluation.intervals.criteria`), in words.

All but `nll` are in percent, and the larger the better.
"""

CRITERIA = {
    "balanced": "class-balanced accuracy",
    "harmonic": "harmonic mean of the class accuracies",
    "all": "accuracy over all images",
    "worst": "accuracy of the worst class",
    "nll": "class-balanced NLL",
}
