"""The memory that decoding takes, bounded for all workers together."""

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator

from datasets.decoding.errors import TooLarge, unreadable
from datasets.decoding.options import DecodeOptions

MEMORY_MIB = 1024  # what the images that are being decoded at one time may take, in all workers together
# Bytes a pixel: PIL's own image, its copy in RGB, and the array; the bare decoder has the array and rows of the file.
BYTES_OF_PIL, BYTES_OF_JPEG = 12, 6
BYTES_OF_TWO_READS = 24  # of 16-bit colours, whose upper and lower bytes are read one after the other
BYTES_OF_COEFFICIENTS = 6  # of a progressive JPEG, which are all kept until its last scan
UNIT = 1 << 23  # bytes that memory is counted in

# Says of a file how many pixels it has and how many bytes each will take, before it is decoded.
Claim = Callable[[str, int, int], None]


class DecodingMemory:
    """The memory that decoding takes, shared by `workers` processes or threads: who finds too little left, waits.

    An image that alone would take more than all of it is refused. Without other workers nobody waits.
    """

    def __init__(self, workers: int = 0, mib: float | None = None) -> None:
        self.units = max(int((MEMORY_MIB if mib is None else mib) * 2**20) // UNIT, 1)
        self._free = multiprocessing.Semaphore(self.units) if workers else None
        self._turn = multiprocessing.Lock() if workers else None

    @contextlib.contextmanager
    def claims(self) -> Iterator[Claim]:
        """Yield what an image is announced to; what it claimed is given back at the end."""
        held = 0

        def claim(path: str, pixels: int, bytes_of_pixel: int) -> None:
            nonlocal held
            needed = -(-pixels * bytes_of_pixel // UNIT)
            if needed > self.units:
                raise unreadable(
                    path,
                    f"its {pixels:,} pixels would take {needed * UNIT >> 20:,} MiB of memory, more than the "
                    f"{self.units * UNIT >> 20:,} MiB that decoding may take; --max_pixels N raises both",
                    TooLarge,
                )
            if self._free is not None and self._turn is not None:
                give_back()  # who waits holds nothing, or two could wait for one another
                with self._turn:
                    for _ in range(needed):
                        self._free.acquire()
                        held += 1

        def give_back() -> None:
            nonlocal held
            for _ in range(held):
                assert self._free is not None
                self._free.release()
            held = 0

        try:
            yield claim
        finally:
            give_back()


def memory_for(options: DecodeOptions, workers: int = 0) -> DecodingMemory:
    """Return the memory of a loader: 1 GiB, or what the largest image that the options allow takes in PIL."""
    largest = (options.max_pixels or 0) * BYTES_OF_PIL / 2**20
    return DecodingMemory(workers, max(MEMORY_MIB, largest + UNIT / 2**20) if options.max_pixels else None)


def no_claim(path: str, pixels: int, bytes_of_pixel: int) -> None:
    """Let an image take the memory that the limit of pixels leaves to it."""
