"""The image, kernel and environment a user names, for every command that starts something."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench import spec, workloads
from bench.errors import BadInput
from bench.image import store as images
from bench.model import Image, Workload


def prepared_image(text: str, *, offline: bool = False) -> Image:
    """The image a user means, built, pulled or imported first; what is being done is shown."""
    with telling() as told:
        return images.ensure(text, told, offline=offline)


@contextlib.contextmanager
def telling() -> Iterator[Callable[[str, float | None], None]]:
    """A progress callback whose progress is shown from its first word on."""
    with contextlib.ExitStack() as stack:
        shown: list[Callable[[str, float | None], None]] = []

        def told(what: str, fraction: float | None) -> None:
            if not shown:  # seldom, and costs an import
                from bench.commands.progress import open_stages, told_to

                shown.append(told_to(stack.enter_context(open_stages(sys.stderr))))
            shown[0](what, fraction)

        yield told


def environment_pairs(items: Sequence[str]) -> list[tuple[str, str]]:
    """``-e NAME=VALUE``, or ``-e NAME`` for our own value; an unset one is left out.

    Raises:
        BadInput: an item has no name.
    """
    pairs = []
    for item in items:
        name, equals, value = item.partition("=")
        if not name:
            raise BadInput(f"-e {item!r} is no NAME=VALUE", "write it as -e NAME=VALUE")
        if equals or name in os.environ:
            pairs.append((name, value if equals else os.environ[name]))
    return pairs


def check_image_options(options: argparse.Namespace) -> None:
    """Refuse what describes one image's workload where there is none.

    Raises:
        BadInput: with the option's name.
    """
    given = {
        "-e": options.env,
        "--ready": options.ready != "auto",
        "--entrypoint": options.entrypoint,
    }
    for name, there in given.items():
        if there and not options.image_option:
            raise BadInput(f"{name} is for --image", "a plan's keys are in docs/plan.md")


def image_workload(options: argparse.Namespace) -> Workload:
    """The workload of ``--image``, which has to be in the cache to say what it is.

    Only ``--dry-run`` pulls nothing: it then tells what it can.
    """
    text, config = options.image_option, None
    known = images.is_path(text) or images.built(text)
    if text in images.BUILTIN or (options.dry_run and not known):
        images.check_name(text)
    else:
        image = prepared_image(text, offline=options.offline)
        text, config = image.name, image.config
    return workloads.from_image(
        text,
        options.argv,
        config,
        ready=options.ready,
        env=environment_pairs(options.env),
        entrypoint=options.entrypoint,
    )


def ready_rule(workload: Workload) -> str:
    """When a workload counts as ready, as far as is known before its image is there."""
    if workload.image not in images.BUILTIN and not images.built(workload.image):
        return "as the image says, once it has been pulled"
    built = images.built(workload.image)
    health = spec.health_of(workload, images.resolve(workload.image)) if built else None
    return workloads.said_ready(workload, health)


def check_kernel(kernel: Path | None) -> None:
    """Refuse a ``--kernel`` that is no file.

    Raises:
        BadInput: with its name.
    """
    if kernel is not None and not kernel.is_file():
        raise BadInput(f"--kernel {kernel} is no file", "name a vmlinux or bzImage")
