"""Losses in somebody's own loop: labels that are ignored, labels that are none, probabilities as targets."""

from benchmarks.robustness.everyday_inputs.case import Case, Ended, Judge, Words, differs

START = """
import json
import torch
from losses import LOSSES, build_loss
COUNTS = [50, 20, 5]
logits = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.4], [-0.5, 1.5, 0.3]])
def said(name, labels, part=slice(None)):
    torch.manual_seed(0)
    loss = build_loss(name, COUNTS).eval()
    try:
        return float(loss(logits[part], labels[part]))
    except Exception as error:
        return type(error).__name__ + ": " + str(error)
"""
OUTSIDE = "print(json.dumps({name: said(name, torch.tensor([0, 1, LABEL])) for name in LOSSES}))"
IGNORED = """
labels = torch.tensor([0, 2, -100])
print(json.dumps({name: [said(name, labels), said(name, labels, slice(2))] for name in LOSSES if name != "gcl"}))
"""  # gcl draws noise, another for a batch of two
SOFT = """
soft = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
print(json.dumps([said("ce", soft), float(torch.nn.functional.cross_entropy(logits, soft))]))
"""
SOFT_OTHER = """
soft = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
print(json.dumps({name: said(name, soft) for name in ("focal", "ldam", "wb_cb", "las")}))
"""


def code(text: str) -> list[Words]:
    return [("-c", START + text)]


def outside(label: int) -> list[Words]:
    return code(OUTSIDE.replace("LABEL", str(label)))


def names_label(label: int) -> Judge:
    """Return a judge of losses that must raise an error which names a label."""

    def judged(ended: Ended) -> str | None:
        answers = ended.answers()
        silent = [name for name, said in answers.items() if isinstance(said, float)]
        mute = [name for name, said in answers.items() if isinstance(said, str) and str(label) not in said]
        if silent:
            return f"computed in silence by {', '.join(silent)}"
        return f"an error that does not name the label: {', '.join(mute)}" if mute else None

    return judged


def left_out(ended: Ended) -> str | None:
    """Judge losses that must be the same with an ignored sample and without it."""
    differ = []
    for name, (with_it, without) in ended.answers().items():
        if not (isinstance(with_it, float) and isinstance(without, float) and abs(with_it - without) < 1e-5):
            differ.append(name)
    return f"not as without the sample: {', '.join(differ)}" if differ else None


def as_torch(ended: Ended) -> str | None:
    found, right = ended.answers()
    if isinstance(found, str):
        return f"raises {found}"
    return differs("loss", round(found, 5), round(right, 5))


def refused_in_a_line(ended: Ended) -> str | None:
    answers = ended.answers()
    silent = [name for name, said in answers.items() if isinstance(said, float)]
    raw = [name for name, said in answers.items() if isinstance(said, str) and "probabilit" not in said]
    if silent:
        return f"computed in silence by {', '.join(silent)}"
    return f"an error that does not say it: {', '.join(raw)}" if raw else None


KIND = "labels of losses"
CASES = (
    Case(KIND, "label K", "every loss raises and names it", None, outside(3), names_label(3)),
    Case(KIND, "label -1", "every loss raises and names it", None, outside(-1), names_label(-1)),
    Case(KIND, "label -100", "every loss leaves it out of its mean", None, code(IGNORED), left_out),
    Case(KIND, "probabilities, cross-entropy", "torch's cross_entropy", None, code(SOFT), as_torch),
    Case(
        KIND,
        "probabilities, losses that have no meaning for them",
        "refused in a line",
        None,
        code(SOFT_OTHER),
        refused_in_a_line,
    ),
)
