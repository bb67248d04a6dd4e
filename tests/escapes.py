"""The attempts of escape.c inside Docker and inside each arm of ours, and the table of both.

``python tests/escapes.py`` (or ``nox -s security``) runs them and writes the table into
docs/security.md; a test fails where we let through what Docker refuses, or the table is stale.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
import tempfile
import time
from enum import StrEnum
from itertools import count
from pathlib import Path

import pytest
from engine import Engine, layer_of, private_engine, save_archive

from bench.agent.build import build_static
from bench.backend import Backend
from bench.context import RunContext
from bench.image import store
from bench.image.busybox import find_busybox
from bench.journal import open_run
from bench.model import Event, Image, InstanceSpec, Security
from ct.backend import ContainerBackend
from hv.backend import VmBackend

PAGE = Path(__file__).resolve().parent.parent / "docs" / "security.md"
BEGIN, END = "<!-- the table of attempts: written by nox -s security -->", "<!-- its end -->"
COLUMNS = ("Docker", "container", "container, same", "container:userns", "vm, same")
NUMBERS = count(1)
TAG = "escape:1"
DEADLINE_S = 120.0
Results = dict[str, int]


class Verdict(StrEnum):
    """What an attempt came to."""

    PASSED = "**lets it**"
    REFUSED = "refused"
    ABSENT = "not there"  # this kernel or instance has no such thing


REFUSALS = {
    errno.EPERM, errno.EACCES, errno.EROFS, errno.ENODATA, errno.ENOSYS, errno.ESRCH,
    errno.ETXTBSY, errno.EXDEV, errno.ELOOP, errno.ECONNREFUSED, 250,
}  # fmt: skip
ABSENCES = {
    errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT,
    errno.EOPNOTSUPP,
}  # fmt: skip


def verdict(code: int) -> Verdict:
    """What an errno means. Any that is listed nowhere (EFAULT, EINVAL…) comes after the checks."""
    if code in ABSENCES:
        return Verdict.ABSENT
    return Verdict.REFUSED if code in REFUSALS else Verdict.PASSED


def parse(output: bytes) -> Results:
    """Title and code of every attempt."""
    rows = (line.split("\t") for line in output.decode().splitlines())
    return {title: int(code) for title, code in rows}


def make_image(space: Path, engine: Engine) -> Image:
    """The program, with and without the set-user-ID bit, in Docker and in our cache."""
    tree = space / "tree"
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (tree / name).mkdir(parents=True)
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n")
    shutil.copy(find_busybox(space), tree / "bin/busybox")
    program = build_static("escape", [Path(__file__).with_name("escape.c")])
    for name, mode in (("escape", 0o755), ("escape-suid", 0o4755)):
        shutil.copy(program, tree / "bin" / name)
        (tree / "bin" / name).chmod(mode)
    (tree / "tmp").chmod(0o1777)
    config = {"Entrypoint": ["/bin/escape"], "Cmd": [str(os.getpid())]}
    archive = save_archive(space / "escape.tar", TAG, [layer_of(tree)], config)
    engine.load(archive)
    with pytest.MonkeyPatch.context() as patch:  # the image only: kernel and agent are as always
        patch.setenv("XDG_CACHE_HOME", str(space / "cache"))
        return store.import_archive(archive)


def in_docker(engine: Engine) -> Results:
    """The attempts in a container of Docker's, with everything at its defaults."""
    done = engine.docker("run", "--rm", "--init", "--network=none", TAG, timeout_s=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return parse(done.stdout)


def in_arm(backend: Backend, context: RunContext, image: Image, security: Security) -> Results:
    """The attempts in an instance of ours."""
    spec = InstanceSpec(
        context.instance(next(NUMBERS)),
        image=image,
        argv=(*image.config.entrypoint, *image.config.cmd),
        security=security,
    )
    backend.prepare(spec)
    with backend.launch(spec) as instance:
        assert instance.wait(Event.EXITED, time.monotonic_ns() + int(DEADLINE_S * 1e9))
    assert instance.exit is not None and instance.exit.code == 0, instance.stderr
    return parse(instance.stdout)


def attempt_everywhere(engine: Engine, context: RunContext, space: Path) -> dict[str, Results]:
    """Every column of the table."""
    image = make_image(space, engine)
    with (
        ContainerBackend(context) as plain,
        ContainerBackend(context, user=True) as user,
        VmBackend(context) as machine,
    ):
        native, same = Security.CONTAINER_NATIVE, Security.SAME
        return {
            "Docker": in_docker(engine),
            "container": in_arm(plain, context, image, native),
            "container, same": in_arm(plain, context, image, same),
            "container:userns": in_arm(user, context, image, native),
            "vm, same": in_arm(machine, context, image, same),
        }


def table(results: dict[str, Results]) -> str:
    """The attempts as Markdown."""
    lines = [f"| attempt | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for title in results["Docker"]:
        cells = (verdict(results[column][title]) for column in COLUMNS)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def published(text: str) -> dict[str, dict[str, Verdict]]:
    """The verdicts of a page, by column and attempt."""
    rows = re.findall(r"^\| (.+) \|$", text.partition(BEGIN)[2].partition(END)[0], re.MULTILINE)
    found: dict[str, dict[str, Verdict]] = {column: {} for column in COLUMNS}
    for row in rows[1:]:
        title, *cells = row.split(" | ")
        for column, cell in zip(COLUMNS, cells, strict=True):
            found[column][title] = Verdict(cell)
    return found


def main() -> int:
    """Write the table into the page."""
    with contextlib.ExitStack() as stack:
        space = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hvct-escape-")))
        engine = stack.enter_context(private_engine())
        context = stack.enter_context(open_run(space / "run"))
        results = attempt_everywhere(engine, context, space)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(results)}\n{END}{after}")
    for title in results["Docker"]:
        codes = (results[column][title] for column in COLUMNS)
        print(title, *(errno.errorcode.get(code, str(code)) for code in codes), sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main())
