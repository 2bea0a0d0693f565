"""What a number depends on: one function makes keys of it, one says in words which parts of two differ.

Features, rows of tables, choices, runs and reports use the same parts, by these names:

- `identity`: what train, held-out and test images hold (`datasets.identity.content`), `class_names` with their order;
- `subset` and `test`: the same by index and name, which is all that earlier versions recorded;
- `checkpoint`: the sha256 of the weights, `backbone`: of those before the classifier; `images`: what an image
  undergoes; `arithmetic`: device and precision;
- settings and plans by their own names.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from datasets.long_tail import LongTailedData

PARTS = {"train": "training", "holdout": "held-out", "test": "test"}
HASHES = ("content_sha256", "images_sha256", "order_sha256", "rows_sha256")
WORDS = {
    "subset": "another training subset",
    "checkpoint": "another checkpoint",
    "backbone": "another backbone",
    "images": "images that are prepared in another way",
    "arithmetic": "another device or precision",
    "rows": "other images, or images in another order",
    "format": "another version of this project",
}
Record = Mapping[str, Any]


def describe_data(data: LongTailedData) -> dict[str, Any]:
    """Return what a data set is, for keys and for config.json."""
    return {"identity": None if data.identity is None else data.identity.record, "class_names": data.class_names}


def key_of(depends: Record) -> str:
    """Return the sha256 of everything that something depends on."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def known_identity(config: Record) -> Record | None:
    """Return the identity that a configuration, perhaps a stranger's, records; None where it has none that is whole."""
    found = config.get("identity")
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in ("how", "of")):
        return None
    for part in PARTS:
        record = found.get(part)
        if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in HASHES):
            return None
    classes = found.get("classes")
    if not isinstance(classes, dict) or not all(isinstance(classes.get(part), list) for part in ("train", "test")):
        return None
    return found


def comparable(there: Record, here: Record) -> tuple[Record, Record] | None:
    """Return the two identities where both are known, and of one kind; else names and labels are all that is known."""
    one, other = known_identity(there), known_identity(here)
    if one is None or other is None or (one["how"], one["of"]) != (other["how"], other["of"]):
        return None
    return one, other


def differences(there: Record, here: Record) -> list[str]:
    """Return in words which parts of two records differ; what one of them lacks is not known, and left out."""
    found, identities = class_differences(there, here), comparable(there, here)
    changed = [] if identities is None else identity_differences(*identities)
    places = class_places(there, here)
    if places is not None and places != list(range(len(places))):
        found = ["classes in another order"]  # and labels with them
        changed = [line for line in changed if not line.endswith("labels")]
    found += changed
    for name in sorted(there.keys() & here.keys()):
        if name == "test" and there["test"] is not None and there["test"] != here["test"]:
            said = any(line.startswith(("other test", "classes in")) for line in found)
            found += [] if said else ["other test images"]
        elif name not in ("identity", "class_names", "test") and there[name] != here[name]:
            found.append(WORDS.get(name) or f"{name} {there[name]} there, {here[name]} now")
    return found


def identity_differences(there: Record, here: Record, parts: Sequence[str] = tuple(PARTS)) -> list[str]:
    """Return in words how two identities of one kind differ in the splits `parts`."""
    found = []
    for part in parts:
        words, one, other = PARTS[part], there[part], here[part]
        if one["content_sha256"] == other["content_sha256"]:
            if one["order_sha256"] != other["order_sha256"]:
                found.append(f"{words} images in another order")
        elif one["images_sha256"] == other["images_sha256"]:
            found.append(f"other {words} labels")
        else:
            found.append(f"other {words} images{in_classes(there, here, part)}")
    return found


def in_classes(there: Record, here: Record, part: str) -> str:
    """Return in words how many of the classes have other images; "" where that is not known."""
    one, other = (record["classes"].get(part) for record in (there, here))
    if one is None or other is None or len(one) != len(other):
        return ""
    changed = sum(a != b for a, b in zip(one, other, strict=True))
    kind = "content" if there["how"] == "content" else "names"
    return f" ({kind}, in {changed} of {len(one)} classes)"


def class_differences(there: Record, here: Record) -> list[str]:
    """Return in words how the classes differ by name; numbers are no names."""
    one, other = there.get("class_names"), here.get("class_names")
    if not isinstance(one, list) or not isinstance(other, list) or one == other:
        return []
    if len(one) == len(other) and unnamed(one) != unnamed(other):
        return []
    return ["classes in another order" if sorted(map(str, one)) == sorted(map(str, other)) else "other class names"]


def unnamed(names: Sequence[Any]) -> bool:
    """Tell whether class names are the numbers of the labels, which stand where there are no names."""
    return list(names) == [str(label) for label in range(len(names))]


def class_places(there: Record, here: Record) -> list[int] | None:
    """Return, for each class of `here`, its number in `there`; None where that cannot be known.

    Names say it where both have them, else what the classes' training images hold, else their test images: of the
    classes that can be recognised, all must be, or all must stand where they stood.
    """
    one, other = there.get("class_names"), here.get("class_names")
    if not isinstance(one, list) or not isinstance(other, list) or len(one) != len(other):
        return None
    if not unnamed(one) and not unnamed(other):
        place_of = {name: place for place, name in enumerate(one)}
        known = len(place_of) == len(one) and set(other) == set(place_of)
        return [place_of[name] for name in other] if known else None
    identities = comparable(there, here)
    if identities is None:
        return None
    for part in ("train", "test"):
        places, count = recognised(*(record["classes"][part] for record in identities)), len(other)
        if places and all(place == label for label, place in places.items()):
            return list(range(count))
        if places:
            whole = len(places) == count and sorted(places.values()) == list(range(count))
            return [places[label] for label in range(count)] if whole else None
    return None


def recognised(there: Sequence[str], here: Sequence[str]) -> dict[int, int]:
    """Return the number in `there` of each class of `here` whose content only one class has on either side."""
    sides = []
    for side in (there, here):
        count = Counter(side)
        sides.append({content: label for label, content in enumerate(side) if count[content] == 1})
    return {label: sides[0][content] for content, label in sides[1].items() if content in sides[0]}
