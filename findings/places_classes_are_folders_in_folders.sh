#!/usr/bin/env bash
# Folders of Places365, from which Places-LT is drawn: three libraries read three sets of classes, none the right one.
#
# Packages: timm==1.0.31, torchvision==0.29.1, datasets==5.2.0, torch==2.14.1, pillow==13.0.0, Python 3.11.
# Behaviour: Places365's images lie in a folder a letter, and in it in a folder a class. Some of these are divided once
# more, as c/church/indoor. torchvision takes the letters for the classes. timm takes the name of the last folder alone.
# Places365 has 25 classes that end in "indoor" and 25 in "outdoor": each 25 become one, a church and a hotel alike.
# datasets (`imagefolder`) does the same where all folders are equally deep. Where they are not, as in Places365, it
# leaves the labels out. It also takes train_interior and train_station for the training split, and reads these alone.
# None of the three warns. Lists of paths and labels, as Places-LT has them, are the way out.
# Output seen (two images a class; seven classes, four, and nine):
#   without trains: torchvision 14 images of a, b, c, g, h
#   without trains: timm 14 images of airfield, castle, exterior, indoor, outdoor
#   without trains: datasets train 14 images without labels
#   divided classes alone: torchvision 8 images of c, h, l
#   divided classes alone: timm 8 images of indoor, outdoor
#   divided classes alone: datasets train 8 images of indoor, outdoor
#   with trains: torchvision 18 images of a, b, c, g, h, t
#   with trains: timm 18 images of airfield, castle, exterior, indoor, outdoor, platform, train_interior
#   with trains: datasets train 4 images without labels
# Exit status: 0 where it is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet timm==1.0.31 torchvision==0.29.1 datasets==5.2.0 torch==2.14.1 pillow==13.0.0
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
cat > "$folder/show.py" <<'PY'
import sys
from pathlib import Path

import datasets
from PIL import Image
from timm.data import create_dataset
from torchvision.datasets import ImageFolder

PLACES = "a/airfield b/balcony/exterior c/castle c/church/indoor c/church/outdoor g/gazebo/exterior h/hotel/outdoor"
TREES = {
    "without trains": PLACES,
    "divided classes alone": "c/church/indoor c/church/outdoor h/hotel/outdoor l/library/indoor",
    "with trains": f"{PLACES} t/train_interior t/train_station/platform",
}


def tell(tree, reader, count, classes):
    print(f"{tree}: {reader} {count} images", f"of {', '.join(classes)}" if classes else "without labels")


for tree, classes in TREES.items():
    root = Path(sys.argv[1]) / tree.replace(" ", "-")
    for name in classes.split():
        (root / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(root / name / f"{number}.png")
    theirs = ImageFolder(root)
    tell(tree, "torchvision", len(theirs), theirs.classes)
    found = create_dataset("", root=str(root), split="all")
    tell(tree, "timm", len(found), found.reader.class_to_idx)
    for split, rows in datasets.load_dataset("imagefolder", data_dir=str(root)).items():
        tell(tree, f"datasets {split}", len(rows), rows.features["label"].names if "label" in rows.features else ())
PY
"$folder/venv/bin/python" "$folder/show.py" "$folder/images" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
without trains: torchvision 14 images of a, b, c, g, h
without trains: timm 14 images of airfield, castle, exterior, indoor, outdoor
without trains: datasets train 14 images without labels
divided classes alone: torchvision 8 images of c, h, l
divided classes alone: timm 8 images of indoor, outdoor
divided classes alone: datasets train 8 images of indoor, outdoor
with trains: torchvision 18 images of a, b, c, g, h, t
with trains: timm 18 images of airfield, castle, exterior, indoor, outdoor, platform, train_interior
with trains: datasets train 4 images without labels
SEEN
