"""Real applications as images, built here from the distribution's packages and a Dockerfile.

No public registry is needed: packages are unpacked, each program's folders and the libraries
it loads become the context of a build ``FROM scratch``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.command import run
from bench.image.debian import host_apt_options, host_sources, release

LOADER = "lib64/ld-linux-x86-64.so.2"
PACKAGES = ("busybox-static", "memcached", "postgresql", "python3")
FOLDERS = ("lib", "usr/lib", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
MODULES = "lib-dynload"  # of Python


@dataclass(frozen=True)
class App:
    """What goes into an image, relative to the tree of unpacked packages, and how it is run."""

    programs: tuple[str, ...]
    folders: tuple[str, ...]
    dockerfile: str
    files: dict[str, str]


POSTGRES = App(
    programs=("usr/lib/postgresql/*/bin/*",),
    folders=("usr/lib/postgresql", "usr/share/postgresql", "usr/share/zoneinfo"),
    files={
        "etc/passwd": "root:x:0:0::/root:/bin/sh\npostgres:x:70:70::/var/lib/postgresql:/bin/sh\n",
        "etc/group": "root:x:0:\npostgres:x:70:\n",
        "usr/local/bin/entrypoint.sh": """#!/bin/sh
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --no-sync --locale=C --encoding=UTF8 --auth=trust >/dev/null
    printf "%s\\n" "listen_addresses='*'" "unix_socket_directories='/tmp'" \\
        "host all all all trust" >>"$PGDATA/postgresql.conf.new"
    head -n 2 "$PGDATA/postgresql.conf.new" >>"$PGDATA/postgresql.conf"
    tail -n 1 "$PGDATA/postgresql.conf.new" >>"$PGDATA/pg_hba.conf"
fi
exec "$@"
""",
    },
    dockerfile="""FROM scratch
COPY tree /
ENV PGDATA=/var/lib/postgresql/data PGPORT=54329 PGHOST=/tmp
ENV PATH={bin}:/usr/local/bin:/usr/bin:/bin
RUN chmod 755 /usr/local/bin/entrypoint.sh && mkdir -p /tmp $PGDATA && chmod 1777 /tmp \
    && chmod 700 $PGDATA && chown 70:70 $PGDATA
USER postgres
VOLUME /var/lib/postgresql/data
EXPOSE 54329
STOPSIGNAL SIGINT
HEALTHCHECK --interval=200ms --timeout=3s CMD pg_isready --quiet
ENTRYPOINT ["entrypoint.sh"]
CMD ["postgres"]
""",
)

# The same with its database made while it was built: an emulated machine would take a minute.
POSTGRES_MADE = """FROM {base}
ENV PGDATA=/var/lib/postgresql/made
USER 0
RUN mkdir $PGDATA && chmod 700 $PGDATA && chown 70:70 $PGDATA
USER postgres
RUN entrypoint.sh true
"""

MEMCACHED = App(
    programs=("usr/bin/memcached",),
    folders=(),
    files={},
    dockerfile="""FROM scratch
COPY tree /
USER 11211
EXPOSE 11219/tcp 11219/udp
ENTRYPOINT ["memcached"]
CMD ["-p", "11219", "-m", "16"]
""",
)

WEB_APP = App(
    programs=("usr/bin/python3.*", "usr/lib/python3.*/lib-dynload/*"),
    folders=("usr/lib/python3*",),
    files={
        "srv/app.py": """from wsgiref.simple_server import make_server

def app(environ, start):
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"served " + environ["PATH_INFO"].encode()]

make_server("", 18089, app).serve_forever()
""",
    },
    dockerfile="""FROM scratch
COPY tree /
WORKDIR /srv
EXPOSE 18089
CMD ["{python}", "app.py"]
""",
)


def unpack_packages(folder: Path) -> Path:
    """The packages and all they depend on, unpacked and not set up, as a tree."""
    tree, suite = folder / "packages", release()["VERSION_CODENAME"]
    space = folder / "sources"
    space.mkdir()
    options = [f"--aptopt={option}" for option in host_apt_options()]
    run(
        [
            *("mmdebstrap", "--mode=root", "--variant=extract", "--format=directory", "--quiet"),
            *(f"--include={','.join(PACKAGES)}", *options, suite, tree),
            *host_sources(Path("/etc/apt"), suite, space),
        ],
        timeout_s=300,
    )
    return tree


def make_context(app: App, tree: Path, folder: Path) -> Path:
    """The folder to build: Dockerfile, and under ``tree`` what goes into the image."""
    inside = folder / "tree"
    inside.mkdir(parents=True)
    _copy(tree / "bin/busybox", tree, inside)
    (inside / "bin/sh").symlink_to("busybox")
    for name in ("mkdir", "chmod", "chown", "head", "tail"):
        (inside / "bin" / name).symlink_to("busybox")
    for pattern in app.folders:
        for found in sorted(tree.glob(pattern)):
            _copy(found, tree, inside)
    for pattern in app.programs:
        for program in sorted(tree.glob(pattern)):
            _copy(program, tree, inside)
            for library in libraries(program, tree):
                _copy(library, tree, inside)
    for name, text in app.files.items():
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).write_text(text)
    found = {"bin": "/usr/lib/postgresql/*/bin", "python": "/usr/bin/python3.*"}
    places = {
        key: "/" + str(next(iter(sorted(tree.glob(value[1:])))).relative_to(tree))
        for key, value in found.items()
    }
    (folder / "Dockerfile").write_text(app.dockerfile.format(**places))
    return folder


def libraries(program: Path, tree: Path) -> list[Path]:
    """What a program's own loader would load, out of the tree alone; nothing for a static one."""
    search = ":".join(str(tree / name) for name in FOLDERS)
    argv = [str(tree / LOADER), "--library-path", search, "--list", str(program)]
    said = subprocess.run(argv, capture_output=True, text=True, check=False)
    found = [Path(name) for name in re.findall(r"=> (/.+) \(0x", said.stdout)]
    loader = [tree / LOADER] if found else []
    return [*loader, *(path for path in found if path.is_relative_to(tree))]


def _copy(path: Path, tree: Path, inside: Path) -> None:
    target = inside / path.relative_to(tree)
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        unwanted = shutil.ignore_patterns("bitcode", "llvmjit*", "test", "__pycache__", "*.pyc")
        shutil.copytree(path, target, symlinks=True, ignore=unwanted, dirs_exist_ok=True)
    elif not target.exists():
        shutil.copy2(path, target)
