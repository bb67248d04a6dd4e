"""``hvct image``: import, build, list, inspect, remove."""

from __future__ import annotations

import argparse
import json
import sys

from bench import store
from bench.image import store as images


def main(options: argparse.Namespace) -> int:
    """Dispatch to the action."""
    actions = {
        "import": import_archive,
        "build": build,
        "list": list_images,
        "inspect": inspect,
        "remove": remove,
    }
    return actions[options.action](options)


def told(what: str, fraction: float | None) -> None:
    """Progress on standard error, one line a step."""
    done = "" if fraction is None else f" {fraction:.0%}"
    print(f"{what}{done}", file=sys.stderr)


def import_archive(options: argparse.Namespace) -> int:
    """An OCI layout or a docker save archive."""
    image = images.import_archive(options.archive, options.name, told)
    print(f"{image.name}  {image.digest}  {image.size_bytes >> 20} MiB")
    return 0


def build(options: argparse.Namespace) -> int:
    """A built-in image, made anew."""
    if options.name == "default":
        image = images.build_default(told)
    else:
        image = images.prepare(options.name, told)
    print(f"{image.name}  {image.digest}  {image.size_bytes >> 20} MiB")
    return 0


def list_images(options: argparse.Namespace) -> int:
    """What is in the cache."""
    found = images.list_images()
    if options.json:
        print(json.dumps(store.jsonable(found), indent=1))
        return 0
    for image in found:
        print(
            f"{image.name:24} {image.digest[:19]}  {image.size_bytes >> 20:5} MiB  {image.source}"
        )
    if not found:
        print("no images yet; the built-in ones are made on first use")
    return 0


def inspect(options: argparse.Namespace) -> int:
    """All about one image."""
    print(json.dumps(store.jsonable(images.inspect(options.name)), indent=1))
    return 0


def remove(options: argparse.Namespace) -> int:
    """Forget an image."""
    images.remove(options.name)
    print(f"removed {options.name}")
    return 0
