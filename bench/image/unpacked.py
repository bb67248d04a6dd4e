"""An image's volume as a folder in the cache, for users who may not mount it.

A file system in a file can be mounted by root alone, in a user namespace too. The folder
holds what the volume holds, except that all of it belongs to the user who unpacked it.
"""

from __future__ import annotations

import os
from pathlib import Path

from bench.cache import cache_dir, lock, remove_tree, workspace
from bench.command import run
from bench.errors import HostCannot, HvctError
from bench.model import Image

HINT = "install erofs-utils, or use root, who can mount the image"


def tree_path(digest: str) -> Path:
    """Where the folder of a volume is, whether it is there or not."""
    return cache_dir("trees") / digest.replace(":", "-")


def unpacked(image: Image) -> Path:
    """The folder of an image, unpacked on first use.

    Raises:
        HostCannot: fsck.erofs is missing, or the image holds what only root can make.
    """
    final = tree_path(image.digest)
    with lock("trees"):
        for other in final.parent.iterdir():  # of images that are gone
            if not (image.path.parent / f"{other.name}.erofs").exists():
                remove_tree(other)
        if not final.exists():
            with workspace("tree") as space:
                made = space / "tree"
                try:
                    run(
                        [
                            *("fsck.erofs", f"--extract={made}"),
                            *("--preserve-perms", "--no-preserve-owner", image.path),
                        ],
                        hint=HINT,
                    )
                except HvctError as error:
                    raise HostCannot(
                        f"{image.name} cannot be unpacked without root: {error.message}", HINT
                    ) from error
                os.replace(made, final)
    return final
