"""The sizes of images that the settings come to on a data set."""

from datasets.long_tail import LongTailedData
from datasets.on_disk.listed_split import ListedSplit
from settings.fields import Settings


def image_sizes(settings: Settings, data: LongTailedData) -> tuple[int, int]:
    """Return the side of what the network sees, and the shorter side that an image is resized to before its crop."""
    if not isinstance(data.train, ListedSplit):
        return data.train.images.shape[1], data.train.images.shape[1]
    size = settings.image_size or 224
    return size, settings.resize or round(size * 256 / 224)
