"""What a package build leaves behind that is of this machine or of this hour, removed."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.errors import HvctError
from bench.image import index
from bench.image.erofs import normalise_times, walk

EMPTIED = (  # folders whose content is of the build
    "boot",
    "dev",
    "proc",
    "run",
    "sys",
    "tmp",
    "etc/apt/apt.conf.d",
    "etc/apt/auth.conf.d",
    "etc/apt/preferences.d",
    "etc/apt/sources.list.d",
    "etc/apt/trusted.gpg.d",
    "etc/dpkg/dpkg.cfg.d",
    "var/cache",
    "var/lib/apt",
    "var/tmp",
)

REMOVED = (
    "etc/.pwd.lock",
    "etc/apt/sources.list",
    "etc/apt/trusted.gpg",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/triggers/Lock",
)

WRITTEN = {
    "etc/hostname": "hvct\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/machine-id": "",
    "etc/resolv.conf": "",
    "var/www/html/index.html": "<!doctype html><title>hvct</title><p>It works.</p>\n",
    "etc/nginx/nginx.conf": """\
# One worker, in the foreground by the workload's argv; no access log, errors to stderr.
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr warn;
events {
    worker_connections 1024;
}
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 65;
    server {
        listen 8080 default_server reuseport;
        root /var/www/html;
        index index.html;
    }
}
""",
}

PASSWORD_CHANGED = "19358"  # days since the epoch; useradd writes the day of the build


def clean(tree: Path, began: float) -> None:
    """Make the tree depend on nothing but the packages in it.

    Times since the build `began` (seconds since the epoch) were stamped by the build
    itself; they become the time of the newest packaged file.
    """
    newest = newest_before(tree, began)
    for name in EMPTIED:
        for path in (tree / name).glob("*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for name in REMOVED:
        (tree / name).unlink(missing_ok=True)
    for path in (tree / "var/log").rglob("*"):
        if path.is_file():  # folders stay: services want theirs
            path.unlink()
    for name, text in WRITTEN.items():
        path = tree / name
        path.unlink(missing_ok=True)  # it may be a link out of the tree
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        index.fix_owner_and_mode(path, 0o644)
    _fix_shadow(tree / "etc/shadow")
    normalise_times(tree, newest)


def newest_before(tree: Path, began: float) -> int:
    """Newest time of what was in the packages, in seconds since the epoch.

    Raises:
        HvctError: nothing is older than the build, so the host's clock is wrong.
    """
    times = [path.lstat().st_mtime for path in walk(tree)]
    packaged = [int(stamp) for stamp in times if stamp < began]
    if not packaged:
        raise HvctError("every packaged file is newer than now", "set this host's clock")
    return max(packaged)


def _fix_shadow(path: Path) -> None:
    rows = [line.split(":") for line in path.read_text().splitlines()]
    path.write_text("".join(":".join([*r[:2], PASSWORD_CHANGED, *r[3:]]) + "\n" for r in rows))
