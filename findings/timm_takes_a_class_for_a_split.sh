#!/usr/bin/env bash
# timm: a class that is called "train", as one of CIFAR-100's is, becomes the training set, and a model trains on it alone.
#
# Package: timm==1.0.31, torch==2.14.1, torchvision==0.29.1, Python 3.11, CPU.
# Behaviour: `create_dataset` given the folder of the training images, which holds a folder for each class, looks in it
# for a folder with the name of the split. Where a class has that name, its folder is taken instead: the data set has that
# class's images alone, all with label 0, and nothing is said. torchvision's `ImageFolder` reads all classes, and timm
# does under a split of another name. CIFAR-100, COCO and Pascal VOC have a class called "train".
# Output seen:
#   torchvision: 9 images of classes apple, bus, train
#   timm, split validation: 9 images, labels 0, 1, 2
#   timm, split train: 3 images, labels 0
# Exit status: 0 where it is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet timm==1.0.31 torch==2.14.1 torchvision==0.29.1
cat > "$folder/show.py" <<'PY'
import sys
from pathlib import Path

from PIL import Image
from timm.data import create_dataset
from torchvision.datasets import ImageFolder

root = Path(sys.argv[1])
for name in ("apple", "bus", "train"):
    (root / name).mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(root / name / f"{number}.png")
theirs = ImageFolder(root)
print(f"torchvision: {len(theirs)} images of classes {', '.join(theirs.classes)}")
for split in ("validation", "train"):
    found = create_dataset("", root=str(root), split=split)
    labels = sorted({label for _, label in found})
    print(f"timm, split {split}: {len(found)} images, labels {', '.join(map(str, labels))}")
PY
"$folder/venv/bin/python" "$folder/show.py" "$folder/images" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
torchvision: 9 images of classes apple, bus, train
timm, split validation: 9 images, labels 0, 1, 2
timm, split train: 3 images, labels 0
SEEN
