"""How image files become pixels where that is a choice: orientation, 16-bit pixels, the size of the largest."""

from dataclasses import dataclass

EXIF, IGNORE = "exif", "ignore"
ORIENTATIONS = (EXIF, IGNORE)
AREA = (0.08, 1.0)  # of a random crop: its share of the image
FULL = 16  # bits: the upper 8 are kept, whatever is in use
# JPEG is decoded at 1/2 or 1/4 where it is too large; what is larger still would keep a process busy for long.
SMALLEST_SCALE = 4


@dataclass(frozen=True)
class DecodeOptions:
    """What is done with photos that are stored turned, with 16-bit pixels, and with the largest images.

    `orientation`: "exif" turns an image as its EXIF data say, "ignore" leaves it as it is stored. `bits`, 8 to 16, are
    those that 16-bit pixels use; None: what the file or its pixels say, else it is refused. `max_pixels` is the limit
    of pixels that are decoded; None is PIL's own, 89 million.
    """

    orientation: str = IGNORE
    bits: int | None = None
    max_pixels: int | None = None

    @property
    def limit(self) -> int | None:
        """The pixels of the largest image that is decoded; None where there is no limit."""
        from PIL import Image  # a tenth of what a help text may cost

        return Image.MAX_IMAGE_PIXELS if self.max_pixels is None else self.max_pixels

    def words(self) -> str:
        """Return what is said of them: the orientation, and what is not the default."""
        lines = ["upright as EXIF says" if self.orientation == EXIF else "as they are stored"]
        lines += [] if self.bits in (None, FULL) else [f"16-bit images of {self.bits} bits"]
        lines += [] if self.max_pixels is None else [f"at most {self.max_pixels:,} pixels in full"]
        return ", ".join(["photos " + lines[0], *lines[1:]])


PLAIN = DecodeOptions()
# As every run before these were options; None of `bits` is newer.
BEFORE_OPTIONS = DecodeOptions(IGNORE, FULL, None)


def recorded_options(options: DecodeOptions) -> dict[str, str | int | None]:
    """Return what a run records of its options: those that are not as they were before they were options.

    So keys of earlier caches and rows hold for the same pixels, and no entry means the same in every record.
    """
    return {name: value for name, value in vars(options).items() if value != getattr(BEFORE_OPTIONS, name)}
