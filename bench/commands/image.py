"""``hvct image``: import, build, list, inspect, remove."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench import store
from bench.image import store as images
from bench.image.index import Progress
from bench.model import Image


def main(options: argparse.Namespace) -> int:
    """Dispatch to the action."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "import": import_archive,
        "build": build,
        "list": list_images,
        "inspect": inspect,
        "remove": remove,
    }
    return actions[options.action](options)


@contextmanager
def telling() -> Iterator[Progress]:
    """Progress on standard error."""
    from bench.commands.progress import open_stages, told_to

    with open_stages(sys.stderr) as stages:
        yield told_to(stages)


def import_archive(options: argparse.Namespace) -> int:
    """An OCI layout or a docker save archive."""
    with telling() as told:
        image = images.import_archive(options.archive, options.name, told)
    return print_image(image, options)


def build(options: argparse.Namespace) -> int:
    """A built-in image, made anew."""
    with telling() as told:
        if options.name == "default":
            image = images.build_default(told)
        else:
            image = images.prepare(options.name, told)
    return print_image(image, options)


def print_image(image: Image, options: argparse.Namespace) -> int:
    """What was made."""
    if options.json:
        print(json.dumps(store.jsonable(image), indent=1))
    else:
        print(f"{image.name}  {image.digest}  {size(image)}")
    return 0


def size(image: Image) -> str:
    """Its size as a person reads it."""
    mebibytes = image.size_bytes / (1 << 20)
    return f"{mebibytes:.1f} MiB" if mebibytes < 10 else f"{mebibytes:.0f} MiB"


def list_images(options: argparse.Namespace) -> int:
    """What is in the cache."""
    found = images.list_images()
    if options.json:
        print(json.dumps(store.jsonable(found), indent=1))
        return 0
    missing = [name for name in images.BUILTIN if name not in {image.name for image in found}]
    width = max((len(image.name) for image in found), default=0)
    for image in found:
        print(f"{image.name:{width}}  {image.digest[:19]}  {size(image):>9}  {image.source}")
    for name in missing:
        print(f"not built yet: {name}, made on first use or by: hvct image build {name}")
    return 0


def inspect(options: argparse.Namespace) -> int:
    """All about one image."""
    print(json.dumps(store.jsonable(images.inspect(options.name)), indent=1))
    return 0


def remove(options: argparse.Namespace) -> int:
    """Forget images, all of them or, where one is unknown, none."""
    for name in options.name:
        images.check_name(name)
    for name in options.name:
        images.remove(name)
        print(f"removed {name}")
    return 0
