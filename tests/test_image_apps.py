"""Real applications: built from Dockerfiles, pushed, pulled, and run in every arm.

PostgreSQL has it all: an entrypoint script, a user of its own, a volume, a health check and a
stop signal that is not SIGTERM.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apps
import faults
import pytest
from registries import Registry, serving

from bench import arms, journal, spec, startup, workloads
from bench import registry as backends
from bench.backend import Instance
from bench.identity import FieldClass, differences
from bench.image import store
from bench.image.remote import Access
from bench.model import Event, Image, NetworkMode, ReadyKind

pytestmark = pytest.mark.root

OPEN = Access(tls_verify=False)
Make = Callable[[str], Image]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """An open registry."""
    with serving(tmp_path_factory.mktemp("applications") / "r") as made:
        yield made


@pytest.fixture(scope="module")
def application(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Gives the image of an application: built, pushed, removed, pulled again; once each."""
    for program in ("buildah", "mmdebstrap"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt-get install {program})")
    folder = tmp_path_factory.mktemp("build of applications")
    tree = apps.unpack_packages(folder)
    made: dict[str, Image] = {}

    def make(name: str) -> Image:
        if name not in made:
            app: apps.App | None = getattr(apps, name.upper(), None)
            if isinstance(app, apps.App):
                context = apps.make_context(app, tree, folder / name)
            else:
                context = folder / name
                context.mkdir()
                text = apps.POSTGRES_MADE.format(base=make("postgres").name)
                (context / "Dockerfile").write_text(text)
            there = f"{registry.host}/apps/{name}:1"
            store.build_folder(context, f"draft-{registry.port}", offline=True)
            store.push(f"draft-{registry.port}", there, OPEN)
            store.remove(f"draft-{registry.port}")
            made[name] = store.pull(there, OPEN)[0]
        return made[name]

    try:
        yield make
    finally:
        for image in made.values():
            store.remove(image.name)


@contextmanager
def ready(image: Image, arm: str, folder: Path) -> Iterator[Instance]:
    """The image's own service in an arm, once it is ready by the image's own rule."""
    workload = workloads.from_image(image.name, None, image.config)
    with (
        journal.open_run(folder, log_dir=folder, network=True) as context,
        backends.make(arms.ARMS[arm], context) as backend,
    ):
        capability = backend.probe()
        assert capability.usable, capability
        wanted = spec.make(workload, image, context, 1)
        backend.prepare(wanted)
        with backend.launch(wanted) as instance:
            startup.await_ready(instance, workload)
            yield instance


def check_postgres(instance: Instance) -> None:
    """It serves, as its own user, in its own folder, and ends cleanly by its own signal."""
    assert instance.execute(["psql", "-AtU", "postgres", "-c", "select 6 * 7"], 30).said == "42\n"  # type: ignore[attr-defined]
    told = instance.execute(["sh", "-c", "busybox id -u; busybox stat -c %u:%a $PGDATA"], 30)  # type: ignore[attr-defined]
    assert told.said == "70\n70:700\n"
    instance.stop(20)
    assert instance.exit is not None and instance.exit.code == 0
    assert b"received fast shutdown request" in instance.stderr, "SIGINT, not SIGTERM"


def test_postgres_as_container_and_process(application: Make, tmp_path: Path) -> None:
    """Entrypoint script, user, volume, health check and stop signal, the same in both arms."""
    image = application("postgres")
    rule = workloads.from_image(image.name, None, image.config)
    assert (rule.ready.kind, rule.ready.port) == (ReadyKind.HEALTH, 54329)
    assert (rule.until, rule.network) == ("ready", NetworkMode.BRIDGE)
    assert image.config.volumes == ("/var/lib/postgresql/data",) and image.config.ids.uid == 70
    receipts = []
    for arm in ("container", "process"):
        with ready(image, arm, tmp_path) as instance:
            marks = instance.timeline.marks_ns
            assert marks[Event.LISTENING] < marks[Event.READY]
            # The first check comes before there is a server, so a second one found it.
            assert instance.timeline.resolution_ns[Event.READY] >= 190_000_000
            check_postgres(instance)
            receipts.append(instance.receipt)
    found = differences(*receipts, ("container", "process"), "container-native")
    assert [item for item in found if item.field_class is FieldClass.MUST_MATCH] == []


@pytest.mark.vm
def test_postgres_as_virtual_machine(application: Make, tmp_path: Path) -> None:
    """The same as a virtual machine; its database was made while it was built."""
    with ready(application("postgres_made"), "vm", tmp_path) as instance:
        check_postgres(instance)


def test_memcached_by_its_port(application: Make, tmp_path: Path) -> None:
    """Without a health check it is ready when its first TCP port takes a connection."""
    image = application("memcached")
    with ready(image, "container", tmp_path) as instance:
        assert instance.spec.ids.uid == 11211
        assert instance.spec.argv == ("memcached", "-p", "11219", "-m", "16")
        instance.stop(10)


def test_comparing_a_web_application(application: Make, registry: Registry, tmp_path: Path) -> None:
    """``hvct compare --image REF`` says its rule, measures, and needs no registry for it."""
    image = application("web_app")
    out = tmp_path / "run of a web app"
    with registry.stopped():
        done = faults.hvct(
            *("compare", "--image", f"{registry.host}/apps/web_app:1", "--wait", "--no-report"),
            *("--arms", "container,process", "--blocks", "7", "--output", out),
        )
    assert done.code == 0, done.err
    assert "Ready   when TCP port 18089 takes a connection" in done.out
    trials = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    assert [trial["outcome"] for trial in trials] == ["ok"] * 14
    assert all(trial["timeline"]["ready"] > 0 for trial in trials)
    run = json.loads((out / "run.json").read_text())
    assert run["images"][image.name]["digest"] == image.digest
    argv = json.dumps(run["receipts"][0]["receipt"]["arg"])
    assert "app.py" in argv and run["receipts"][0]["receipt"]["cwd"] == "/srv"
