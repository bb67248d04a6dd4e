"""The default image: the programs of all workloads, from the host's own distribution packages.

mmdebstrap installs them from the apt sources this host is set up with, so that any
mirror works; nothing of this machine stays inside. Two builds from the same packages
are the same bytes.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from bench.cache import lock
from bench.command import run
from bench.errors import HostCannot, HvctError
from bench.image import index
from bench.image.debian_clean import clean
from bench.image.index import Progress, silent
from bench.model import Image, ImageConfig

NAME = "default"
REVISION = 1  # raise when the tree changes for another reason than the list below

PACKAGES = (
    "busybox",
    "fio",
    "hpcc",
    "iperf3",
    "nginx-light",
    "openssl",
    "pixz",
    "python3",
    "redis-server",
    "sockperf",
    "stress-ng",
    "sysbench",
    "xz-utils",
)

LEFT_OUT = (  # nothing at run time reads them
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
)

CONFIG = ImageConfig(
    cmd=("/bin/bash",),
    env=(
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("LANG", "C.UTF-8"),
    ),
)

OTHER_IMAGES = "use the busybox image, or import one: hvct image import ARCHIVE"
STAGES = {  # what mmdebstrap says, what that means, how far it then is
    "running apt-get update": ("reading package lists", 0.05),
    "downloading packages": ("downloading packages", 0.10),
    "extracting archives": ("unpacking the base system", 0.30),
    "installing essential": ("installing the base system", 0.40),
    "installing remaining": ("installing all other programs", 0.55),
    "cleaning package lists": ("cleaning up", 0.90),
}


def default_image(progress: Progress = silent, *, fresh: bool = False) -> Image:
    """The default image, built in about 30 s when it is not in the cache.

    Args:
        fresh: build it anew even so, with the packages of today.

    Raises:
        HostCannot: not root, or not a host with apt and mmdebstrap.
        HvctError: packages could not be fetched or installed.
    """
    recipe = _recipe()
    with lock(f"image-{NAME}"):
        entry = index.load(NAME)
        if entry is not None and entry.recipe == recipe and not fresh:
            return entry.image
        suite = check_host("the default image", OTHER_IMAGES)
        with index.build_space() as space:
            tree, began = space / "tree", time.time()
            bootstrap(space, tree, suite, progress, "the default image", PACKAGES)
            progress("writing the image", 0.95)
            packages = installed(tree)
            clean(tree, began)
            return index.store_tree(
                NAME,
                tree,
                CONFIG,
                source=f"{distribution()} packages by mmdebstrap",
                recipe=recipe,
                packages=packages,
            )


def _recipe() -> str:
    parts = (REVISION, PACKAGES, LEFT_OUT, release().get("VERSION_CODENAME", ""))
    return "debian-" + sha256(json.dumps(parts).encode()).hexdigest()[:16]


def release() -> dict[str, str]:
    """What the host says its distribution is; empty when it says nothing."""
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def distribution() -> str:
    """The host's distribution and suite, for the report: ``Debian 12 (bookworm)``."""
    facts = release()
    return f"{facts.get('NAME', 'Linux').removesuffix(' GNU/Linux')} {facts.get('VERSION', '')}"


def check_host(what: str, otherwise: str) -> str:
    """The suite to install from, where this host can build a tree of packages.

    Args:
        what: it becomes, for the message: ``the default image``.
        otherwise: what to do without it.

    Raises:
        HostCannot: it cannot; the message says what is missing.
    """
    if os.geteuid() != 0:
        raise HostCannot(f"building {what} needs root", f"run as root, or {otherwise}")
    suite = release().get("VERSION_CODENAME", "")
    if shutil.which("apt-get") is None or not suite:
        raise HostCannot(
            f"{what} is built from Debian or Ubuntu packages, and this host is neither",
            otherwise,
        )
    if shutil.which("mmdebstrap") is None:
        raise HostCannot("mmdebstrap is not installed", "install the package mmdebstrap")
    return suite


def bootstrap(
    space: Path,
    tree: Path,
    suite: str,
    progress: Progress,
    what: str,
    packages: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> None:
    """Install the packages into `tree`.

    Args:
        space: a folder for what is needed meanwhile.
        what: it becomes, for messages.
        environment: of the packages' own scripts, besides what every build has.

    Raises:
        HvctError: mmdebstrap failed; its last words are in the message.
    """
    sources = host_sources(Path("/etc/apt"), suite, space)
    logfile = space / "mmdebstrap.log"
    argv: list[str | Path] = [
        # Its own process and mount namespaces, killed with us: nothing that was mounted
        # or started inside the tree can outlive a build, however that ends.
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("mmdebstrap", "--mode=root", "--variant=essential", "--format=directory"),
        f"--logfile={logfile}",
        f"--include={','.join(packages)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
        *(f"--aptopt={option}" for option in host_apt_options()),
        suite,
        tree,
        *sources,
    ]
    env = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        **{name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")},
        **(environment or {}),
    }
    with _following(logfile, progress):
        try:
            run(argv, env=env, timeout_s=1800)
        except HvctError as error:
            said = _complaints(logfile) or error.message
            raise HvctError(
                f"{what} could not be built: {said}",
                "check that apt-get update works here and that the disk has 1.5 GB free",
            ) from error


def _complaints(logfile: Path) -> str:
    try:
        lines = logfile.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    wrong = [line for line in lines if re.match(r"(E:|Err:|dpkg: error)", line)]
    return " · ".join((wrong or lines)[-3:])


@contextmanager
def _following(logfile: Path, progress: Progress) -> Iterator[None]:
    """Tell the progress of a build from the log it writes, while it writes it."""
    done = threading.Event()

    def follow() -> None:
        told = 0
        while not done.wait(0.2):
            said = logfile.read_text(errors="replace") if logfile.exists() else ""
            reached = [stage for words, stage in STAGES.items() if words in said]
            if len(reached) > told:
                told = len(reached)
                progress(*reached[-1])

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def host_sources(apt: Path, suite: str, space: Path) -> list[Path]:
    """Copies of the host's apt sources, with only the distribution's own archive in them.

    A third party's archive that this host also uses must not decide what is in the image.

    Raises:
        HostCannot: there is none for the suite.
    """
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    kept: list[Path] = []
    for number, path in enumerate(file for file in files if file.is_file()):
        if path.suffix not in (".list", ".sources"):
            continue
        text = path.read_text(errors="replace")
        if path.suffix == ".list":
            parts = [line for line in text.splitlines() if _own_line(line, suite)]
            chosen = "\n".join(parts)
        else:
            parts = [part for part in re.split(r"\n\s*\n", text) if _own_stanza(part, suite)]
            chosen = "\n\n".join(parts)
        if parts:
            copy = space / f"{number:02d}-{path.name}"
            copy.write_text(chosen + "\n")
            kept.append(copy)
    if not kept:
        raise HostCannot(
            f"no apt source of this host has the suite {suite} with the component main",
            "add one to /etc/apt/sources.list",
        )
    return kept


def _own(suites: list[str], components: list[str], suite: str) -> bool:
    wanted = {suite, f"{suite}-updates", f"{suite}-security", f"{suite}/updates"}
    return bool(suites) and set(suites) <= wanted and "main" in components


def _own_line(line: str, suite: str) -> bool:
    words = re.sub(r"\[[^]]*\]", "", line.partition("#")[0]).split()
    return words[:1] == ["deb"] and _own(words[2:3], words[3:], suite)


def _own_stanza(stanza: str, suite: str) -> bool:
    fields: dict[str, list[str]] = {}
    for line in stanza.splitlines():
        name, colon, value = line.partition(":")
        if colon and not line.startswith((" ", "\t", "#")):
            fields[name.lower()] = value.split()
    if "no" in fields.get("enabled", []) or "deb" not in fields.get("types", []):
        return False
    return _own(fields.get("suites", []), fields.get("components", []), suite)


def host_apt_options() -> list[str]:
    """How this host's apt reaches its mirror: proxies, certificates, retries, credentials."""
    dump = run(["apt-config", "dump"]).decode(errors="replace")
    wanted = re.compile(
        r'Acquire::((https?|ftp|tor)::\S+|Retries|Check-Valid-Until|Check-Date) "[^"]+";'
    )
    options = [line for line in dump.splitlines() if wanted.fullmatch(line)]
    return [*options, 'Dir::Etc::netrcparts "/etc/apt/auth.conf.d/";']


def installed(tree: Path) -> tuple[str, ...]:
    """Every package in the tree with its version, ``name version``, by name."""
    shown = run(
        [
            "dpkg-query",
            f"--admindir={tree}/var/lib/dpkg",
            "--show",
            "--showformat=${Package} ${Version}\\n",
        ]
    )
    return tuple(sorted(shown.decode().splitlines()))
