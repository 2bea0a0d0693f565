"""Which class prior the probabilities of a classifier stand for, as far as its recipe says.

Cross-entropy on images as they come ends at the posterior under the training images' shares, and so does what only
rescales it: focal loss, mild label smoothing, a cosine classifier. Every other method is there to balance the classes:
balanced softmax and logit adjustment stand for equal shares by construction (Ren et al., NeurIPS 2020; Menon et al.,
ICLR 2021), the rest by intention. How far a training got there no recipe says; held-out images do
(`evaluation.priors.correction.held_out_prior`).
"""

TRAIN, UNIFORM = "train", "uniform"
STAGE1 = "stage 1"  # what `--method auto` calls the classifier that it may leave as it is
TRAINING_METHODS = frozenset({"ce", "label_smooth", "focal", "cosine"})
TRAINING_LOSSES = frozenset({"ce", "focal"})


def recipe_prior(method: str | None, loss: str | None, sampler: str | None = None) -> str:
    """Return "train" or "uniform": what a method of stage 2, or without one a loss of stage 1, is made for.

    `sampler` is that of the run: drawing rare classes more often balances whatever the loss is.
    """
    if sampler not in (None, "instance"):
        return UNIFORM
    if method is not None:
        return TRAIN if method in TRAINING_METHODS else UNIFORM
    return TRAIN if loss is None or loss in TRAINING_LOSSES else UNIFORM


def method_of(method: str | None, chosen: str | None) -> str | None:
    """Return the method of a run; of `--method auto` that of the candidate which was `chosen`, None for stage 1's own
    classifier, "auto" for an ensemble and where it was not recorded."""
    if chosen is None or " + " in chosen:
        return method
    if chosen.startswith(STAGE1):
        return None if chosen == STAGE1 else "offsets"
    return chosen.split(" ")[0]
