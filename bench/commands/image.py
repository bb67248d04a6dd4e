"""``hvct image``: pull, push, import, build, list, inspect, remove, login, logout."""

from __future__ import annotations

import argparse
import dataclasses
import getpass
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import store
from bench.errors import BadInput
from bench.image import remote
from bench.image import store as images
from bench.image.index import Progress
from bench.image.remote import Access
from bench.model import Image
from bench.sizes import parse_size


def main(options: argparse.Namespace) -> int:
    """Dispatch to the action."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "import": import_archive,
        "build": build,
        "pull": pull,
        "push": push,
        "login": login,
        "logout": logout,
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
        image = images.import_archive(options.archive, options.name, told, max_bytes(options))
    return print_image(image, options)


def max_bytes(options: argparse.Namespace) -> int:
    """What an image may unpack to.

    Raises:
        BadInput: the option is no size.
    """
    try:
        return parse_size(options.max_size)
    except ValueError as error:
        raise BadInput(f"--max-size: {error}", 'write it as "40GiB"') from error


def build(options: argparse.Namespace) -> int:
    """A Dockerfile, or a built-in image, made anew."""
    own = options.what in images.BUILTIN
    if own and (options.tag or options.file or options.build_arg):
        raise BadInput(
            f"{options.what} is a built-in image, with no Dockerfile",
            f"./{options.what} is a folder",
        )
    with telling() as told:
        if not own:
            image = images.build_folder(
                Path(options.what),
                options.tag,
                told,
                file=options.file,
                arguments=options.build_arg,
                offline=options.offline,
                max_bytes=max_bytes(options),
            )
        elif options.what == "default":
            image = images.build_default(told)
        else:
            image = images.prepare(options.what, told)
    return print_image(image, options)


def access(options: argparse.Namespace) -> Access:
    """How the registry is reached.

    Raises:
        BadInput: a password without a user, or the other way round; or none where one is promised.
    """
    if bool(options.username) != options.password_stdin:
        raise BadInput(
            "--username and --password-stdin belong together",
            "or log in: hvct image login REGISTRY",
        )
    password = sys.stdin.readline().rstrip("\n") if options.password_stdin else ""
    if options.password_stdin and not password:
        raise BadInput("standard input holds no password", "give it one: --password-stdin <FILE")
    return Access(
        authfile=options.authfile,
        username=options.username,
        password=password,
        tls_verify=options.tls_verify == "true",
        cert_dir=options.cert_dir,
    )


def pull(options: argparse.Namespace) -> int:
    """An image of a registry."""
    way = access(options)
    with telling() as told:
        image, note = images.pull(
            options.reference,
            way,
            told,
            name=options.name,
            offline=options.offline,
            max_bytes=max_bytes(options),
        )
    if note:
        print(f"hvct: {note}", file=sys.stderr)
    return print_image(image, options)


def push(options: argparse.Namespace) -> int:
    """An image of the cache, to a registry."""
    way = access(options)
    with telling() as told:
        where, digest = images.push(options.name, options.reference, way, told)
    if options.json:
        print(json.dumps({"reference": where, "digest": digest}, indent=1))
    else:
        print(f"{where}  {digest}")
    return 0


def login(options: argparse.Namespace) -> int:
    """A login that later commands use; asked for on the terminal unless it is given."""
    way = access(options)
    if not way.username:
        if not sys.stdin.isatty():
            raise BadInput(
                "there is no terminal to ask for the login", "--username USER --password-stdin"
            )
        print(f"user at {options.registry}: ", end="", file=sys.stderr, flush=True)
        user = sys.stdin.readline().strip()
        way = dataclasses.replace(way, username=user, password=getpass.getpass("password: "))
    remote.login(options.registry, way)
    print(f"logged in to {options.registry} as {way.username}", file=sys.stderr)
    return 0


def logout(options: argparse.Namespace) -> int:
    """Forget a login."""
    remote.logout(options.registry, Access(authfile=options.authfile))
    return 0


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
