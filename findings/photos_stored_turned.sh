#!/usr/bin/env bash
# Photos stored turned (EXIF orientation): the two PyTorch decoders disagree unasked, and no two readers agree on all.
#
# Packages: torch==2.14.1, torchvision==0.29.1, torchcodec==0.17.0, pillow==13.0.0, numpy==2.4.6, Python 3.11, CPU.
# Behaviour: torchvision's decode_image and decode_jpeg return a photo as it is stored; TorchCodec's functions of the
# same names, which are to replace them, return it upright and have no switch. So replacing the import changes the
# pixels, and the shape, of every photo that was taken with the phone held upright. torchvision's own switch,
# apply_exif_orientation=True, works for JPEG and PNG and is silently without effect on WebP. Pillow's Image.open is
# "as stored" but for TIFF, which it turns. Orientation in XMP alone is read by Pillow's exif_transpose and by no other.
# Each behaviour may be meant; that one photo has two shapes by the library that reads it is what surprises.
# Output seen (height x width of a photo stored as 24 x 32 and to be shown as 32 x 24):
#   JPEG: Image.open 24x32, exif_transpose 32x24, torchvision 24x32, its switch 32x24, TorchCodec 32x24
#   PNG: Image.open 24x32, exif_transpose 32x24, torchvision 24x32, its switch 32x24, TorchCodec 32x24
#   WEBP: Image.open 24x32, exif_transpose 32x24, torchvision 24x32, its switch 24x32, TorchCodec 32x24
#   TIFF: Image.open 32x24, exif_transpose 32x24
#   JPEG, XMP alone: Image.open 24x32, exif_transpose 32x24, torchvision 24x32, its switch 24x32, TorchCodec 24x32
# Exit status: 0 where it is still so, 1 where it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 torchcodec==0.17.0 pillow==13.0.0 numpy==2.4.6
cat > "$folder/show.py" <<'PY'
import io
import warnings

import numpy as np
import torch
import torchcodec.decoders
import torchvision.io
from PIL import Image, ImageOps

warnings.simplefilter("ignore")
pixels = np.random.RandomState(0).randint(0, 256, (24, 32, 3)).astype(np.uint8)
exif = Image.Exif()
exif[0x0112] = 6  # to be turned by a quarter before it is shown
xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def size(height, width):
    return f"{height}x{width}"


for name, form, more in (
    ("JPEG", "JPEG", {"exif": exif}),
    ("PNG", "PNG", {"exif": exif}),
    ("WEBP", "WEBP", {"exif": exif}),
    ("TIFF", "TIFF", {"exif": exif}),
    ("JPEG, XMP alone", "JPEG", {"xmp": xmp}),
):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **more)
    data = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    seen = {"Image.open": np.asarray(Image.open(file)).shape[:2]}
    seen["exif_transpose"] = np.asarray(ImageOps.exif_transpose(Image.open(file))).shape[:2]
    if form != "TIFF":  # which neither of the others reads
        seen["torchvision"] = torchvision.io.decode_image(data).shape[1:]
        seen["its switch"] = torchvision.io.decode_image(data, apply_exif_orientation=True).shape[1:]
        seen["TorchCodec"] = torchcodec.decoders.decode_image(data).shape[1:]
    print(f"{name}: " + ", ".join(f"{reader} {size(*shape)}" for reader, shape in seen.items()))
PY
"$folder/venv/bin/python" "$folder/show.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
JPEG: Image.open 24x32, exif_transpose 32x24, torchvision 24x32, its switch 32x24, TorchCodec 32x24
PNG: Image.open 24x32, exif_transpose 32x24, torchvision 24x32, its switch 32x24, TorchCodec 32x24
WEBP: Image.open 24x32, exif_transpose 32x24, torchvision 24x32, its switch 24x32, TorchCodec 32x24
TIFF: Image.open 32x24, exif_transpose 32x24
JPEG, XMP alone: Image.open 24x32, exif_transpose 32x24, torchvision 24x32, its switch 24x32, TorchCodec 24x32
SEEN
