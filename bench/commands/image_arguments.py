"""Arguments, help and examples of ``hvct image``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.commands.parser import Commands, Parser, command, json_option


def image(commands: Commands) -> None:
    """Add ``hvct image``."""
    parser = command(
        commands, "image", "image", "pull, push, import, build, list, inspect and remove images",
        """
hvct image list
hvct image pull docker.io/library/nginx:1.27
hvct image import my-app.tar --name my-app
hvct image build ./my-app -t my-app              from its Dockerfile
hvct image build default                         the built-in one, anew
""",
    )  # fmt: skip
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)

    def action(name: str, summary: str, examples: str) -> Parser:
        return command(actions, name, "image", summary, examples)

    item = action(
        "import", "import an OCI layout (folder or tar) or a docker save archive",
        """
docker save my/app:1 | gzip >app.tar.gz; hvct image import app.tar.gz
skopeo copy docker://my/app:1 oci:app; hvct image import app --name my-app
hvct image import big.tar --max-size 40GiB

Every layer is looked through before it is unpacked. What would fill the disk,
points out of the image or has impossible names is refused.
""",
    )  # fmt: skip
    item.add_argument("archive", type=Path, metavar="ARCHIVE", help="a file or a folder")
    item.add_argument(
        "--name", metavar="NAME", help="default: the one in the archive, else its file name"
    )
    _max_size(item)
    json_option(item)
    item = action(
        "build", "build a Dockerfile (through buildah), or a built-in image anew",
        """
hvct image build ./my-app -t my-app:2          from ./my-app/Dockerfile
hvct image build . --build-arg VERSION=3 --file docker/Dockerfile
hvct image build            the default image, with today's packages
hvct image build busybox

FROM takes images of the cache first (default, busybox, pulled, imported ones):
with those and scratch it needs no network. Needed: apt-get install buildah.
""",
    )  # fmt: skip
    item.add_argument(
        "what", nargs="?", default="default", metavar="DIR",
        help="a folder with a Dockerfile; or default (sysbench, redis, nginx, …), or busybox",
    )  # fmt: skip
    item.add_argument("-t", "--tag", metavar="NAME", help="its name; default: the folder's")
    item.add_argument("-f", "--file", type=Path, metavar="FILE", help="default: DIR/Dockerfile")
    item.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME=VALUE", help="for its ARG"
    )
    item.add_argument("--offline", action="store_true", help="pull no base image")
    _max_size(item)
    json_option(item)
    item = action(
        "pull", "bring an image of a registry into the cache",
        """
hvct image pull nginx:1.27                     docker.io/library/nginx:1.27
hvct image pull quay.io/org/app@sha256:…
hvct image pull registry.lan:5000/app --tls-verify=false
hvct image pull registry.lan/app --username me --password-stdin <secret

What is in the cache is not fetched again, a pull that was cut short goes on.
Where the registry cannot be reached, the image that was pulled last is taken.
""",
    )  # fmt: skip
    item.add_argument("reference", metavar="REF", help="REGISTRY/NAME:TAG or …@sha256:DIGEST")
    item.add_argument("--name", metavar="NAME", help="in the cache; default: as it is called there")
    item.add_argument("--offline", action="store_true", help="from the cache, asking nobody")
    _max_size(item)
    _registry_options(item)
    json_option(item)
    item = action(
        "push", "push an image of the cache to a registry",
        """
hvct image push my-app registry.lan:5000/team/my-app:2
hvct image push default 127.0.0.1:5000/hvct/default --tls-verify=false

What was pulled, imported or built is pushed as it came, with its digest.
""",
    )  # fmt: skip
    item.add_argument("name", metavar="NAME", help="as hvct image list shows it")
    item.add_argument("reference", metavar="REF", help="REGISTRY/NAME:TAG")
    _registry_options(item)
    json_option(item)
    for name, summary in (("login", "log in to a registry"), ("logout", "forget a login")):
        item = action(
            name, f"{summary}, through skopeo",
            f"""
hvct image {name} registry.lan:5000

Logins are kept where skopeo, podman and docker look for them, or in --authfile.
""",
        )  # fmt: skip
        item.add_argument("registry", metavar="REGISTRY", help="its name, with its port")
        if name == "login":
            _registry_options(item)
        else:
            item.add_argument("--authfile", type=Path, metavar="FILE", help="where it is kept")
    item = action("list", "list the images in the cache", "hvct image list\nhvct image list --json")
    json_option(item)
    item = action(
        "inspect", "print all about one image, as JSON", "hvct image inspect default | jq .packages"
    )
    item.add_argument("name", metavar="NAME", help="as hvct image list shows it")
    json_option(item, "what it does anyway")
    item = action(
        "remove", "remove images from the cache",
        "hvct image remove my-app\nhvct image remove default    it is built again when needed",
    )  # fmt: skip
    item.add_argument("name", nargs="+", metavar="NAME", help="as hvct image list shows it")
    for each in actions.choices.values():
        each.set_defaults(command="image")


def _registry_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("registry")
    group.add_argument("--username", default="", metavar="USER", help="for this command only")
    group.add_argument(
        "--password-stdin", action="store_true", help="read the password from standard input"
    )
    group.add_argument(
        "--authfile", type=Path, metavar="FILE", help="logins; default: skopeo's, then docker's"
    )
    group.add_argument(
        "--tls-verify", default="true", choices=("true", "false"), metavar="true|false",
        help="false: allow plain HTTP and any certificate",
    )  # fmt: skip
    group.add_argument(
        "--cert-dir", type=Path, metavar="DIR", help="folder with the registry's CA as ca.crt"
    )


def _max_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-size", default="20GiB", metavar="SIZE",
        help="refuse an image that unpacks to more; default: 20GiB",
    )  # fmt: skip
