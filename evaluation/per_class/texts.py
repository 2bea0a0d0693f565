"""The classes on the screen: the worst ones, the worst pairs, and the confusion matrix by shot, in 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evaluation.per_class.confusion import Confusion
from evaluation.text_tables import short_name, to_text

if TYPE_CHECKING:
    import pandas as pd

WORST_CLASSES = 10
PAIRS_SHOWN = 5


def worst_rows(table: pd.DataFrame) -> list[dict[str, object]]:
    """Return the rows of the classes of the lowest accuracy, of equals those with more training images first."""
    import pandas as pd

    known = table[table["accuracy"].notna()]
    worst = known.sort_values(["accuracy", "training_images"], ascending=[True, False], kind="stable")
    return [
        {
            "class": short_name(row["name"]),
            "trained": row["training_images"],
            "tested": row["test_images"],
            "accuracy": f"{row['accuracy']:.1f}",
            "taken for": "-" if pd.isna(row["most_confused_with"]) else short_name(row["most_confused_with"]),
            "images": row["most_confused_images"],
        }
        for _, row in worst.head(WORST_CLASSES).iterrows()
    ]


def group_rows(groups: Mapping[str, Mapping[str, float]]) -> list[dict[str, object]]:
    """Return the rows of the confusion matrix by shot, as tables show it."""
    return [
        {"of": name, **{f"wrong, {key}" if key != "right" else key: f"{value:.1f}" for key, value in row.items()}}
        for name, row in groups.items()
    ]


def pair_rows(pairs: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> list[dict[str, object]]:
    """Return the rows of the worst pairs, as tables show them."""
    return [
        {
            "class": short_name(class_names[pair["true"]]),
            "taken for": short_name(class_names[pair["predicted"]]),
            "images": pair["images"],
            "% of class": f"{pair['share']:.1f}",
        }
        for pair in pairs
    ]


def classes_text(confusion: Confusion, table: pd.DataFrame, what: str) -> str:
    """Return what is said of the classes; `what` says of which predictions ("last epoch, plain")."""
    names = table["name"].tolist()
    parts = [f"worst classes, {what}:", to_text(worst_rows(table)), ""]
    parts += [f"images in percent, right or taken for another class, {what}:", to_text(group_rows(confusion["groups"]))]
    if confusion["pairs"]:
        parts += ["", "most confused:", to_text(pair_rows(confusion["pairs"][:PAIRS_SHOWN], names))]
    return "\n".join(parts)
