"""What a list may name: paths below an image folder, as they are written.

A path that leaves that folder is refused, while symbolic links in it, which its owner made, are followed.
"""

import os

from utils.text import shown

LONGEST = 1000  # characters of a path: every row of a split takes as much memory as its longest one


def path_fault(path: str) -> str:
    """Return what is wrong with a path that a list names; "" if nothing is. Windows' paths count too."""
    upwards = ".." in path and ".." in path.replace("\\", "/").split("/")
    if upwards or path.startswith(("/", "\\")) or path[1:2] == ":" or "\0" in path or not path:
        return f"the path '{shown(path)}' leaves the image folder; it must be relative to it, without '..'"
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # JSON can hold half a character
        return f"the path '{shown(path)}' cannot be the name of a file"
    return "" if len(path) <= LONGEST else f"the path '{shown(path)}' has more than {LONGEST} characters"
