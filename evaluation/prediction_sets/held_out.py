"""What is kept of the held-out images of a model: their true classes' probabilities and the classifier's own prior."""

from evaluation.measure import Images, SplitLogits
from evaluation.prediction_sets.record import HeldOut, measure_held_out
from evaluation.priors.correction import Prior, held_out_prior
from utils.text import counted


def find_held_out(
    logits_of: SplitLogits, images: Images, assumed: Prior, temperature: float | None = None
) -> HeldOut | None:
    """Return what is kept of the held-out images, at the temperature given or 1; None where none were held out.

    `assumed` is the prior that the classifier's recipe is made for.
    """
    if len(images["holdout"]) == 0:
        return None
    logits, labels, own = logits_of.rows("holdout"), images["holdout"].labels, temperature or 1.0
    prior = held_out_prior(logits, labels, assumed, own)
    return measure_held_out(logits, labels, own, prior.shares.tolist())


def classifier_prior(held_out: HeldOut | None, assumed: Prior) -> Prior:
    """Return the prior that a classifier's probabilities stand for: measured on held-out images, else `assumed`."""
    if held_out is None:
        return Prior(assumed.shares, f"{assumed.words}; no held-out images to measure it on")
    shares = assumed.shares.new_tensor(held_out.prior)
    return Prior(
        shares / shares.sum(), f"measured on its predictions for {counted(len(held_out.labels), 'held-out image')}"
    )
