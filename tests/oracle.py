"""The same images and commands by Docker and by hvct: what is asked, and how each is run.

Docker runs with ``--init`` where it makes a difference: the agent is PID 1 of a container of
ours, as docker-init then is of one of Docker's.
"""

from __future__ import annotations

import base64
import dataclasses
import shutil
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from engine import Engine, layer_of, save_archive

from bench import spec
from bench.backend import Backend, Instance
from bench.command import run
from bench.commands import arguments
from bench.commands.run import make_workload
from bench.context import RunContext
from bench.errors import LaunchFailed
from bench.image import store
from bench.image.busybox import find_busybox, populate
from bench.model import Event, Image, InstanceSpec, OutputMode

NUMBERS = count(1)
SHELL = ["/bin/sh", "-c"]

SHOW = r"""#!/bin/sh
# Everything a program can see of how it was started, one facet after the other.
facet() { printf '\n== %s\n' "$1"; }
facet arguments; for word; do printf '[%s]\n' "$word"; done
facet environment; base64 < /proc/$$/environ
facet ids; id -u; id -g; id -G
facet 'supplementary groups'; grep ^Groups: /proc/$$/status
facet 'working directory'; pwd; stat -c '%u:%g %a' .
facet umask; umask
facet 'host name'; hostname
facet /etc/hosts; cat /etc/hosts
facet /etc/resolv.conf; cat /etc/resolv.conf
facet 'standard input'; readlink /proc/$$/fd/0 | sed 's/[0-9][0-9]*/N/'
facet 'open descriptors'; ls /proc/$$/fd
facet 'signal state'; grep -E '^Sig(Blk|Ign)' /proc/$$/status
facet capabilities; grep ^Cap /proc/$$/status
facet no_new_privs; grep ^NoNewPrivs /proc/$$/status
facet seccomp; grep ^Seccomp: /proc/$$/status
facet priority; cut -d' ' -f19 /proc/$$/stat; cat /proc/$$/oom_score_adj
facet limits; sed 's/  */ /g' /proc/$$/limits
facet devices; cd /dev; stat -c '%N %F %a %t:%T' * | grep -v '^core'
facet 'kernel file systems'
grep -E '^[^ ]+ /(proc|sys|dev)( |/(shm|pts|mqueue) )' /proc/mounts | sed s/,inode64// | sort
facet '/dev/shm'; df -k /dev/shm | tail -n 1
facet interfaces; for link in /sys/class/net/*; do echo "${link##*/} $(cat $link/flags)"; done
facet 'process 1'; cat /proc/1/comm
facet 'first process group'; [ "$(cut -d' ' -f5 /proc/$$/stat)" = $$ ] && echo its own
facet 'can write'
for path in / /tmp /srv/app /data /run /srv; do
    (: > $path/probe) 2>/dev/null && echo "$path" && rm $path/probe
done
facet 'mode of new files'; cd /tmp; : > probe; stat -c '%u:%g %a' probe; rm probe
[ "$word" = wait ] || exit 0
trap 'echo stopped; exit 7' TERM
facet stop; echo ready
while :; do sleep 0.05; done
"""

ODD = [
    "SPACES=a  b ",
    "LINES=one\ntwo\n",
    "EMPTY=",
    "EQUALS=a=b=c",
    "UNICODE=ü€",
    "QUOTES='\"$HOME",
]
PATH = "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

IMAGES: dict[str, dict[str, Any]] = {
    "plain": {"Env": [PATH], "Cmd": ["/bin/show"]},
    "bare": {"Cmd": ["/bin/show"]},
    "named": {
        "Env": [PATH, *ODD],
        "User": "app",
        "WorkingDir": "/srv/not there/yet",
        "Entrypoint": ["/bin/show", "a b"],
        "Cmd": ["", "c'd", "$HOME"],
    },
    "numbered": {"User": "1234:5678", "WorkingDir": "/tmp", "Cmd": ["show"]},
    "of a number": {"User": "1000", "Cmd": ["show"]},
    "of a group": {"User": "app:extra", "Env": ["HOME=/from/image"], "Cmd": ["show"]},
    "shell form": {"Entrypoint": [*SHELL, 'echo "$0 $# $*"; exec show "$@"'], "Cmd": ["x", "y z"]},
    "volumes": {
        "Volumes": {"/data": {}, "/new/volume": {}},
        "StopSignal": "SIGUSR1",
        "User": "app",
        "Cmd": [*SHELL, "ls -laR /data /new | grep -v ' \\.\\.$' | cut -c1-55; touch /data/mine"],
    },
}  # fmt: skip
OLD = 1_700_000_000


def make_tree(space: Path) -> Path:
    """The files of every image: busybox, accounts, the probe, and programs that do not run."""
    tree = space / "tree"
    populate(tree, find_busybox(space))
    texts = {
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/srv/app:/bin/sh\n",
        "etc/group": "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\nextra:x:2000:app\n",
        "bin/show": SHOW,
        "bin/not-executable": "#!/bin/sh\n",
        "bin/no-interpreter": "#!/no/such\n",
        "bin/no-program": "this is text\n",
        "data/seed": "in the image\n",
        "srv/app/here": "",
    }
    for name, text in texts.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
        (tree / name).chmod(0o755 if name.startswith("bin/") else 0o644)
    (tree / "bin/not-executable").chmod(0o644)
    for name in ("srv/app", "data"):
        shutil.chown(tree / name, 1000, 1001)
        (tree / name).chmod(0o755)
    (tree / "srv").chmod(0o755)
    run(["find", tree, "-exec", "touch", "-h", "-d", f"@{OLD}", "{}", "+"])
    return tree


def make_images(space: Path, engine: Engine) -> dict[str, Image]:
    """The images, each loaded by Docker from the archive that we import."""
    layer = layer_of(make_tree(space))
    made = {}
    for name, config in IMAGES.items():
        tag = f"oracle/{name.replace(' ', '-')}:1"
        archive = save_archive(space / "with space.tar", tag, [layer], config)
        engine.load(archive)
        made[name] = store.import_archive(archive)
        assert made[name].name == tag
    return made


@dataclass(frozen=True)
class Case:
    """One command: image, what follows it, options that both know, and what is fed to it."""

    image: str
    command: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    stdin: bytes = b""
    init: bool = True


@dataclass(frozen=True)
class Answer:
    """What came of it, as a shell would see it."""

    stdout: bytes
    stderr: bytes
    status: int

    def facets(self) -> dict[str, str]:
        """The output of SHOW, by facet; the environment decoded, in alphabetical order."""
        parts = self.stdout.decode().replace("\r\n", "\n").split("\n== ")
        found = {"before": parts[0]}
        for part in parts[1:]:
            name, _, text = part.partition("\n")
            found[name] = text.rstrip("\n")
        block = base64.b64decode(found["environment"]).decode().removesuffix("\0")
        found["environment"] = "\n".join(sorted(block.split("\0")))
        return found


def by_docker(engine: Engine, image: Image, case: Case) -> Answer:
    """Run it as `docker run` does."""
    argv = ("run", "--rm", *docker_options(case), image.name, *case.command)
    done = engine.docker(*argv, stdin=case.stdin)
    return Answer(done.stdout, done.stderr, done.returncode)


def docker_options(case: Case) -> tuple[str, ...]:
    """The case's options, and what makes the two comparable at all."""
    fixed = ("--network=none", "--hostname=hvct", *(("--init",) if case.init else ()))
    return (*fixed, *case.options)


def specification(context: RunContext, image: Image, case: Case, **changes: Any) -> InstanceSpec:
    """What `hvct run` makes of the same command line."""
    options = arguments.parse(["run", *case.options, image.name, "--", *case.command])
    made = spec.make(make_workload(options, image), image, context, next(NUMBERS))
    more = {"output": OutputMode.STREAM, "stdin": options.interactive, "tty": options.tty}
    return dataclasses.replace(made, **(more | changes))


def by_hvct(backend: Backend, context: RunContext, image: Image, case: Case) -> Answer:
    """Run it as `hvct run` does."""
    wanted = specification(context, image, case)
    backend.prepare(wanted)
    try:
        with backend.launch(wanted) as instance:
            instance.wait(Event.STARTED, soon())
            if wanted.stdin:
                instance.send_stdin(case.stdin)
                instance.send_stdin(b"")
            assert instance.wait(Event.EXITED, soon())
    except LaunchFailed as error:
        return Answer(b"", error.message.encode(), error.exit_code)
    return answer_of(instance)


def answer_of(instance: Instance) -> Answer:
    """What an instance that has ended left."""
    status = instance.exit
    assert status is not None
    code = 128 + status.signal if status.signal is not None else int(status.code or 0)
    return Answer(instance.stdout, instance.stderr, code)


def soon(seconds: float = 60.0) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)
