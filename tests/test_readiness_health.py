"""Readiness out of an image: health checks, ports, and what the user says instead."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import plan_file, spec, store, workloads
from bench.errors import BadInput
from bench.image.config import parse
from bench.image.users import Accounts
from bench.model import (
    Execution,
    Healthcheck,
    Image,
    ImageConfig,
    NetworkMode,
    Readiness,
    ReadyKind,
    Workload,
)
from bench.readiness import await_healthy, check_interval_s

CHECK = Healthcheck(("check", "it"), interval_s=0.05, timeout_s=3.0)
SERVER = ImageConfig(
    entrypoint=("/entry",),
    cmd=("serve",),
    exposed_ports=("8443/tcp", "53/udp", "8080", "9000-9001"),
    healthcheck=CHECK,
)


class Checks:
    """Called as a check: ends the n-th with the n-th status, the last one for ever."""

    def __init__(self, *codes: int | None, takes_s: float = 0.0) -> None:
        self.codes, self.takes_s = list(codes), takes_s
        self.began: list[int] = []
        self.limits: list[float] = []

    def __call__(self, argv: Sequence[str], timeout_s: float) -> Execution:
        """End a check."""
        assert tuple(argv) == CHECK.command
        self.began.append(time.monotonic_ns())
        self.limits.append(timeout_s)
        time.sleep(self.takes_s)
        code = self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]
        return Execution(code, "what\nit said", time.monotonic_ns())


def idle(wait_s: float) -> bool:
    """An instance that lives."""
    time.sleep(min(wait_s, 0.01))
    return True


def in_s(seconds: float) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


def test_healthy_at_the_first_success() -> None:
    """Checked at once, then at the interval; what the last one cannot exclude is the doubt."""
    checks, started = Checks(1, None, 0), time.monotonic_ns()
    reached, _ = await_healthy(CHECK, checks, in_s(20), idle, started_ns=started)
    assert reached is not None and len(checks.began) == 3
    steps = [after - before for before, after in zip(checks.began, checks.began[1:], strict=False)]
    assert min(steps) >= 50_000_000
    assert abs(reached.resolution_ns - steps[1]) < 5_000_000
    assert reached.stamp_ns >= checks.began[-1]
    assert set(checks.limits) == {3.0}


def test_never_healthy_says_why() -> None:
    """The deadline, and an instance that has ended, give what the last check said."""
    reached, said = await_healthy(CHECK, Checks(7), in_s(0.2), idle, started_ns=0)
    assert reached is None and said == "status 7: what it said"
    checks = Checks(None)
    reached, said = await_healthy(CHECK, checks, in_s(20), lambda _: False, started_ns=0)
    assert reached is None and said == "what it said" and len(checks.began) == 1


def test_a_check_has_no_longer_than_is_left() -> None:
    """A check cannot outlast the workload's time."""
    checks = Checks(1)
    await_healthy(CHECK, checks, in_s(0.3), idle, started_ns=0)
    assert max(checks.limits) <= 0.3


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (Healthcheck(("x",)), 1.0),
        (Healthcheck(("x",), interval_s=0.2), 0.2),
        (Healthcheck(("x",), interval_s=0.2, start_interval_s=0.1), 0.1),
        (Healthcheck(("x",), interval_s=0.001), 0.01),
    ],
)
def test_the_interval_is_as_declared_within_bounds(check: Healthcheck, expected: float) -> None:
    """An engine's 30 s would say nothing about a start; a start interval goes first."""
    assert check_interval_s(check) == expected


def declared(**fields: object) -> Healthcheck | None:
    """What an image configuration says."""
    return parse({"Healthcheck": fields, "Shell": ["/bin/ash", "-c"]}, Accounts()).healthcheck


def test_dockers_forms_of_a_health_check() -> None:
    """CMD, CMD-SHELL with the image's shell, NONE; durations in nanoseconds, with defaults."""
    shell = declared(Test=["CMD-SHELL", "a b"], Interval=1_500_000_000, StartInterval=10**8)
    assert shell == Healthcheck(("/bin/ash", "-c", "a b"), 1.5, 30.0, 0.1)
    assert declared(Test=["CMD", "a", "b"], Timeout=10**9) == Healthcheck(("a", "b"), 30.0, 1.0)
    assert declared(Test=["NONE"]) is declared() is declared(Test=["CMD"]) is None
    for wrong in ({"Test": "x"}, {"Test": ["RUN", "x"]}, {"Test": ["CMD", "x"], "Interval": -1}):
        with pytest.raises(BadInput, match="malformed"):
            declared(**wrong)


def test_the_rule_an_image_brings() -> None:
    """A health check, else the lowest TCP port, else it is no server; a command makes none."""
    made = workloads.from_image("r.io:5000/team/app:1", None, SERVER)
    assert (made.name, made.ready.kind, made.ready.port) == ("team-app-1", ReadyKind.HEALTH, 8080)
    assert (made.argv, made.until, made.network) == (None, "ready", NetworkMode.BRIDGE)
    ports = ImageConfig(exposed_ports=SERVER.exposed_ports)
    made = workloads.from_image("app", None, ports)
    assert made.ready == Readiness(ReadyKind.TCP, port=8080) and made.until == "ready"
    assert workloads.tcp_ports(ports) == [8080, 8443, 9000, 9001]
    udp = workloads.from_image("app", None, ImageConfig(exposed_ports=("53/udp",)))
    assert (udp.ready, udp.until, udp.network) == (Readiness(), "exit", NetworkMode.NONE)
    job = workloads.from_image("app", ["--once"], SERVER)
    assert (job.argv, job.until, job.ready) == (("/entry", "--once"), "exit", Readiness())
    other = workloads.from_image("app", ["-c", "x"], SERVER, entrypoint="sh", env=[("A", "b")])
    assert (other.argv, other.env) == (("sh", "-c", "x"), (("A", "b"),))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("exit", Readiness()),
        ("output", Readiness(ReadyKind.OUTPUT)),
        ("health", Readiness(ReadyKind.HEALTH, port=8080)),
        ("tcp:99", Readiness(ReadyKind.TCP, port=99)),
        ("http:99", Readiness(ReadyKind.HTTP, port=99)),
        ("http:99/a/b?c", Readiness(ReadyKind.HTTP, port=99, path="/a/b?c")),
        ("line:^up: (x|y)$", Readiness(ReadyKind.LINE, pattern="^up: (x|y)$")),
    ],
)
def test_the_rule_a_user_gives(said: str, expected: Readiness) -> None:
    """--ready outweighs what the image says, with a command and without."""
    for words in (None, ["x"]):
        made = workloads.from_image("app", words, SERVER, ready=said)
        assert made.ready == expected and (made.until == "exit") == (said == "exit")
        assert workloads.said_ready(made)


@pytest.mark.parametrize(
    "said", ["", "tcp", "tcp:", "tcp:0", "tcp:99999", "tcp:8/x", "udp:9", "line:"]
)
def test_a_rule_that_is_none(said: str) -> None:
    """It is told which there are."""
    with pytest.raises(BadInput) as caught:
        workloads.from_image("app", None, SERVER, ready=said)
    assert "tcp:PORT" in caught.value.hint
    with pytest.raises(BadInput, match="no health check"):
        workloads.from_image("app", None, ImageConfig(), ready="health")


def test_what_a_plan_says_of_a_health_check(tmp_path: Path) -> None:
    """Its own command and times go before the image's; it is stored and read back the same."""
    (tmp_path / "p.toml").write_text(
        """name = "p"
[[workload]]
name = "own"
image = "busybox"
until = "ready"
ready = {kind = "health", command = ["test", "-e", "/x"], timeout_s = 2}
[[workload]]
name = "images"
image = "busybox"
until = "ready"
ready = {kind = "health", interval_s = 0.5}
"""
    )
    plan = plan_file.from_toml(tmp_path / "p.toml", seed=1)
    assert plan_file.from_run(store.jsonable(plan)).workloads == plan.workloads
    image = Image("i", "", Path("/"), 0, "", "amd64", ImageConfig(healthcheck=CHECK), "")
    own, images = (spec.health_of(workload, image) for workload in plan.workloads)
    assert own == Healthcheck(("test", "-e", "/x"), spec.OWN_CHECK_S, 2.0)
    assert images == Healthcheck(CHECK.command, 0.5, 3.0)
    assert ("startup_ready", "own") in plan.primary
    bare = Image("i", "", Path("/"), 0, "", "amd64", ImageConfig(), "")
    with pytest.raises(BadInput, match="declares no health check"):
        spec.health_of(plan.workloads[1], bare)
    assert spec.health_of(Workload("w", "", "i"), image) is None
