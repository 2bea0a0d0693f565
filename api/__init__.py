"""Classifier re-training in Python: arrays in; a fitted head, probabilities and a report out (docs/python.md).

Nothing here reads a command line, writes a file or prints.
"""

from api.arrays import InputError
from api.classifier import RetrainedClassifier, retrain
from api.comparison import Comparison, compare

__all__ = ["Comparison", "InputError", "RetrainedClassifier", "compare", "retrain"]
