"""Methods on test sets with other class shares, forward and backward, without the known prior and with it.

The protocol is LADE's (`evaluation.priors.shifted`); the correction is `evaluation.priors.correction`. With held-out
images the temperature is fitted and the classifier's own prior is measured on them; else the temperature is 1 and the
prior is that of the method's recipe. Nothing is chosen on test images.
"""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from evaluation.measure import find_temperature
from evaluation.priors.correction import Prior, corrected_predictions, prior_offsets
from evaluation.priors.shifted import FACTORS, shifted_profiles, weighted_accuracy
from evaluation.run_rows import mean_cell
from evaluation.shown_tables import Tables
from tables.corrections.retrained import Retrained, Shown, make_corrected
from tables.request import Request

NOT_USED, KNOWN = "not used", "known"
PROFILES = [*(f"forward-{n}" for n in FACTORS), "uniform", *(f"backward-{n}" for n in reversed(FACTORS))]
SHOWN = ("forward-50", "forward-10", "uniform", "backward-10", "backward-50")


def make_table(request: Request) -> None:
    """Write `results/priors_<experiment>.*`."""
    make_corrected(request, __doc__ or "", measure, read)


def read(table: pd.DataFrame) -> Shown:
    """Return what people read of the rows."""
    return Shown(shown_tables(table), draw(table), own_priors(table))


def measure(classifier: Retrained) -> list[dict[str, Any]]:
    """Return two CSV rows of a classifier, the prior not used and known: its accuracy on every test set, in percent."""
    context, logits_of = classifier.context, classifier.logits_of()
    temperature = find_temperature(logits_of, context.images).value
    source = classifier.prior(logits_of, temperature)
    logits, labels = logits_of("test"), context.images["test"].labels
    plain = logits.argmax(dim=1)
    found: dict[str, dict[str, float]] = {NOT_USED: {}, KNOWN: {}}
    for name, shares in shifted_profiles(context.data.class_counts).items():
        corrected = corrected_predictions(logits, prior_offsets(source, Prior(shares, name)), temperature or 1.0)
        found[NOT_USED][name] = weighted_accuracy(plain, labels, shares)
        found[KNOWN][name] = weighted_accuracy(corrected, labels, shares)
    about = {**classifier.about(), "temperature": temperature or 1.0, "classifier_prior": source.words}
    return [{**about, "prior": prior, **values, **classifier.origin()} for prior, values in found.items()]


def shown_tables(table: pd.DataFrame) -> Tables:
    """Return the tables that people read: five of the eleven test sets, without the prior and with it."""
    found: Tables = {}
    for prior in (NOT_USED, KNOWN):
        own = table[table["prior"] == prior]
        lines = [
            {"method": name, **{profile: mean_cell(runs[profile], 1) for profile in SHOWN}}
            for name, runs in own.groupby("row", sort=False)
        ]
        found[f"Accuracy in percent, test prior {prior}, last epoch, plain"] = pd.DataFrame(lines)
    return found


def own_priors(table: pd.DataFrame) -> list[str]:
    """Return a line for each prior that classifiers were taken to stand for, and the range of temperatures."""
    known = table[table["prior"] == KNOWN]
    groups = known.groupby("classifier_prior", sort=False)["row"]
    lines = [f"Own prior of {', '.join(dict.fromkeys(names))}: {words}." for words, names in groups]
    low, high = known["temperature"].min(), known["temperature"].max()
    return [*lines, f"Temperature {low:.3g}." if low == high else f"Temperatures {low:.3g} to {high:.3g}."]


def draw(table: pd.DataFrame) -> Figure:
    """Draw the accuracy over the test sets, from forward to backward, without the prior and with it."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for axes, prior in zip(figure.subplots(1, 2, sharey=True), (NOT_USED, KNOWN), strict=True):
        for name, runs in table[table["prior"] == prior].groupby("row", sort=False):
            axes.plot(range(len(PROFILES)), runs[PROFILES].mean(), marker="o", markersize=3, label=name)
        axes.set_xticks(range(len(PROFILES)), PROFILES, rotation=60)
        axes.set(title=f"test prior {prior}", xlabel="test set")
    figure.axes[0].set(ylabel="test accuracy (%), last epoch, plain")
    figure.axes[0].legend(fontsize=8)
    return figure
