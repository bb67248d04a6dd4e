"""Plans: everything wrong is said before anything on the host is touched."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import faults
import pytest

from bench import arms, plan, plan_file, plan_text, registration
from bench.errors import BadInput
from bench.model import (
    Better,
    Gap,
    Limits,
    MemoryBasis,
    MetricRule,
    NetworkMode,
    PageCache,
    Readiness,
    ReadyKind,
    Scale,
    Security,
    Workload,
)
from bench.plan import Plan
from bench.plan_file import parse_size
from bench.stats.planning import MOST_PRIMARY
from bench.store import jsonable

GOOD = """
name = "mine"
blocks = 12
seed = 7
arms = ["vm", "container"]

[[workload]]
name = "web"
argv = ["nginx", "-g", "daemon off;"]
until = "ready"
network = "bridge"
hold_s = 0.5
limits = {cpus = 1, memory = "256 MiB"}
ready = {kind = "http", port = 80}

[[workload.metric]]
name = "rate"
unit = "req/s"
regex = "rate: ([0-9.]+)"
margin = 0.03
"""


def write(tmp_path: Path, text: str) -> Path:
    """A plan file with this text."""
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return path


def test_a_plan_file_becomes_a_plan(tmp_path: Path) -> None:
    """Sizes, readiness, metrics and their margins arrive as written."""
    made = plan_file.from_toml(write(tmp_path, GOOD))
    assert (made.name, made.blocks, made.seed, made.arms) == ("mine", 12, 7, ("vm", "container"))
    web = made.workload("web")
    assert web.limits.memory_bytes == 256 << 20
    assert web.ready == Readiness(ReadyKind.HTTP, port=80)
    assert web.metrics[0].name == "rate"
    assert made.margins == {"rate": 0.03}


@pytest.mark.parametrize("seed", [0, 9])
def test_a_given_seed_goes_before_the_plans(tmp_path: Path, seed: int) -> None:
    """Zero is one too."""
    assert plan_file.from_toml(write(tmp_path, GOOD), seed=seed).seed == seed


EVERY_KEY = Plan(
    name="all",
    arms=("vm", "vm:direct", "container"),
    workloads=(
        Workload(
            name="w",
            title="a \"title\" of 'two' lines\n\tü€😀\x7f\x01\\",
            image="r.lan:5000/x@sha256:00",
            argv=("sh", "-c", "printf '\\\\n%s' \"$A\"", ""),
            env=(("A", "b=c"), ("WITH-DASH", ""), ("Ü", "x\ny")),
            user="1:2",
            workdir="/a b",
            ready=Readiness(
                ReadyKind.REPLY, port=1, path="/x", pattern="^a$", command=("a", "b c"),
                interval_s=0.1, timeout_s=1e-05, send=b"PING\r\n", expect=b"+",
            ),
            until="ready",
            hold_s=0.25,
            timeout_s=1e4,
            expect_status=3,
            limits=Limits(
                cpus=1.5, memory_bytes=3 << 30, memory_basis=MemoryBasis.NOMINAL, pids=9,
                writable_bytes=5 << 20, shm_bytes=7 << 20, scratch_bytes=64 << 20,
            ),
            network=NetworkMode.BRIDGE,
            security=Security.SAME,
            metrics=(
                MetricRule(
                    "rate", "1/s", Scale.DIFFERENCE, Better.LOWER, "stderr", r"r: (\d+)",
                    repeats="first",
                ),
                MetricRule("deep", "s", pointer="/a/0"),
            ),
            work_units=2.5,
            work_unit_name="MiB",
            exchanges=200,
            elastic=True,
        ),
    ),
    blocks=14,
    seed=0,
    primary=(("rate", "w"), ("startup_ready", "w")),
    margins={"rate": 0.5, "startup_ready": 0.2},
    invalidation={"steal_cpus": 0.5},
    page_cache=PageCache.COLD,
    gap=Gap.NONE,
)  # fmt: skip


def test_every_key_survives_being_written(tmp_path: Path) -> None:
    """A plan as text is the same plan when it is read again, quotes and line ends included."""
    changed = {
        field.name
        for made, default in (
            (EVERY_KEY.workloads[0], Workload("", "", "")),
            (EVERY_KEY.workloads[0].limits, Limits()),
            (EVERY_KEY.workloads[0].ready, Readiness()),
            (EVERY_KEY.workloads[0].metrics[0], MetricRule("", "")),
        )
        for field in dataclasses.fields(made)
        if getattr(made, field.name) == getattr(default, field.name)
    }
    # No keys, above, or in a test of its own: many at once are ready by other rules.
    assert changed == {"swap_bytes", "writable_inodes", "pointer", "together"}
    notes = {"w": "a note\nof \x01 two lines"}
    assert plan_file.from_toml(write(tmp_path, plan_text.toml(EVERY_KEY, notes))) == EVERY_KEY
    plain = dataclasses.replace(EVERY_KEY, margins={}, invalidation=dict(plan.INVALIDATION))
    assert plan_file.from_toml(write(tmp_path, plan_text.toml(plain))) == plain


@pytest.mark.parametrize("keys", ["", 'page_cache = "cold"\n', 'gap = "none"\n'])
def test_a_stored_plan_comes_back_equal(tmp_path: Path, keys: str) -> None:
    """What run.json holds is enough to resume with exactly the same plan."""
    made = plan_file.from_toml(write(tmp_path, keys + GOOD))
    assert plan_file.from_run(json.loads(json.dumps(jsonable(made)))) == made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("blocks = 12", "blocks = 0"), "blocks"),
        (("blocks = 12", 'blocks = "many"'), "blocks"),
        (("blocks = 12", "blox = 12"), "blox"),
        (('memory = "256 MiB"', 'memory = "-1 MiB"'), "memory"),
        (('memory = "256 MiB"', 'memory = "256 furlongs"'), "furlongs"),
        (("cpus = 1,", "cpus = -1,"), "cpus"),
        (('arms = ["vm", "container"]', 'arms = ["vm", "vm"]'), "twice"),
        (('arms = ["vm", "container"]', 'arms = ["vm"]'), "two arms"),
        (('arms = ["vm", "container"]', 'arms = ["vm", "cloud"]'), "cloud"),
        (('kind = "http", port = 80', 'kind = "http"'), "port"),
        (('kind = "http", port = 80', 'kind = "http", port = 99999'), "port"),
        (('kind = "http", port = 80', 'kind = "line", pattern = "("'), "regular expression"),
        (('network = "bridge"\n', ""), "network"),
        (('regex = "rate: ([0-9.]+)"', 'regex = "rate"'), "one group"),
        (('regex = "rate: ([0-9.]+)"', ""), "regex or a pointer"),
        (('name = "web"', 'name = "../web"'), "name"),
        (("[[workload]]", '[[workload]]\nname = "web"\n[[workload]]'), "twice"),
        (("margin = 0.03", "margin = -3"), "margin"),
        (("blocks = 12", "blocks = ["), "TOML"),
    ],
)  # fmt: skip
def test_a_wrong_plan_is_refused_with_its_place(
    tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    """Unknown keys, wrong types, duplicates and negative sizes: one line what, one what to do."""
    assert change[0] in GOOD
    with pytest.raises(BadInput) as caught:
        plan_file.from_toml(write(tmp_path, GOOD.replace(*change)))
    assert said in caught.value.message
    assert "\n" not in caught.value.message.replace("\n", "", 0) or said == "TOML"
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_a_plan_of_ten_megabytes_is_refused_unread(tmp_path: Path) -> None:
    """A file that is no plan costs neither time nor memory."""
    with pytest.raises(BadInput, match="1 MiB"):
        plan_file.from_toml(write(tmp_path, "# " + "x" * 10_000_000))


def test_more_than_the_host_has_is_refused() -> None:
    """CPUs and memory are checked against this host, not discovered in the first trial."""
    greedy = plan.quick([Workload("w", "w", "busybox", argv=("true",))])
    plan.check_against_host(greedy, cpus=1, memory_bytes=1 << 30)
    with pytest.raises(BadInput, match="CPUs"):
        plan.check_against_host(greedy, cpus=0, memory_bytes=1 << 30)
    with pytest.raises(BadInput, match="MiB"):
        plan.check_against_host(greedy, cpus=1, memory_bytes=1 << 20)


def test_the_primary_family_has_at_most_eight_members() -> None:
    """Holm's correction is over what the plan lists, and it lists few."""
    many = [
        Workload(
            f"w{n}", "w", "busybox", argv=("true",), metrics=(MetricRule("m", "x", regex="(.)"),)
        )
        for n in range(9)
    ]
    assert len(plan.quick(many).primary) == MOST_PRIMARY


def test_sizes() -> None:
    """Binary units, bare numbers, and nothing else."""
    assert parse_size("1 GiB") == 1 << 30
    assert parse_size("64M") == 64 << 20
    assert parse_size(4096) == 4096
    for wrong in ("", "0", "1 parsec", "-5", None, True, 0):
        with pytest.raises(ValueError):
            parse_size(wrong)


def test_a_server_without_network_cannot_be_reached() -> None:
    """Readiness over the network needs one."""
    with pytest.raises(BadInput, match="network"):
        plan.quick(
            [
                Workload(
                    "w", "w", "busybox", argv=("true",), until="ready",
                    ready=Readiness(ReadyKind.TCP, port=80), network=NetworkMode.NONE,
                )
            ]
        )  # fmt: skip


def test_what_an_arm_has_ready_beforehand_is_a_rule_of_the_plan() -> None:
    """The rules in force say what an arm does not pay for at launch, and only where it is in."""
    workload = Workload("w", "a title", "busybox", argv=("true",))
    plain = plan.quick([workload], arms=["container", "process"]).fairness()
    assert "slot" not in plain["join"] and "pooled" not in plain["join"]
    rules = plan.quick([workload], arms=["container:slot", "container", "container:pooled"])
    assert "container:slot is born in a group that was made before" in rules.fairness()["join"]
    assert "container:pooled enters a network namespace" in rules.fairness()["join"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('argv = ["x"]\ntogether = 0', "together"),
        ('argv = ["x"]\ntogether = 201', "together"),
        ('argv = ["x"]\ntogether = 2\nwork_units = 3.0', "neither held nor"),
        (
            'argv = ["x"]\ntogether = 2\nuntil = "ready"\nhold_s = 1.0\nready = {kind = "output"}',
            "neither held nor",
        ),
        (
            'argv = ["x"]\ntogether = 2\nuntil = "ready"\nnetwork = "bridge"\n'
            'ready = {kind = "tcp", port = 80}',
            "cannot be ready by tcp",
        ),
    ],
)
def test_what_is_not_measured_of_many_at_once_is_refused(
    tmp_path: Path, keys: str, said: str
) -> None:
    """Probes, holding and work are of one instance; the number has its bounds."""
    file = write(tmp_path, f'blocks = 12\n[[workload]]\nname = "w"\n{keys}\n')
    with pytest.raises(BadInput) as caught:
        plan_file.from_toml(file)
    assert said in caught.value.message and caught.value.hint


def test_many_at_once_are_judged_by_the_last_one(tmp_path: Path) -> None:
    """The plan keeps the number, judges together_started, and says where all are pinned."""
    file = write(tmp_path, 'blocks = 12\n[[workload]]\nname = "w"\nargv = ["x"]\ntogether = 20\n')
    made = plan_file.from_toml(file)
    assert made.primary == (("together_started", "w"),)
    assert made.workload("w").together == 20
    assert plan_file.from_toml(write(tmp_path, plan_text.toml(made))) == made
    assert "(w) are all pinned to the CPUs of one" in made.fairness()["cpu"]
    assert plan_file.from_run(json.loads(json.dumps(jsonable(made)))) == made
    with pytest.raises(BadInput, match="20 instances of 'w' at once may use 512 MiB each"):
        plan.check_against_host(made, cpus=2, memory_bytes=20 * (512 << 20) - 1)
    plan.check_against_host(made, cpus=2, memory_bytes=20 * (512 << 20))


@pytest.mark.parametrize("arm", arms.NEVER_COLD)
def test_an_arm_that_is_never_cold_is_refused_with_its_reason(tmp_path: Path, arm: str) -> None:
    """Before the run; by default every arm starts warm, and the rule in force says which."""
    text = GOOD.replace('"container"', f'"{arm}", "container"', 1)
    assert arm in text
    assert "warm on the host" in plan_file.from_toml(write(tmp_path, text)).fairness()["page_cache"]
    with pytest.raises(BadInput) as refused:
        plan_file.from_toml(write(tmp_path, 'page_cache = "cold"\n' + text))
    assert f"{arm} cannot start from a cold" in refused.value.message
    assert arms.NEVER_COLD[arm] in refused.value.message
    made = plan_file.from_toml(write(tmp_path, 'page_cache = "cold"\n' + GOOD))
    assert made.fairness()["page_cache"].startswith("cold: ")


def test_without_a_gap_the_rule_in_force_says_so(tmp_path: Path) -> None:
    """By default trials are kept apart; the plan's other choice is a rule, and another digest."""
    apart, close = (plan_file.from_toml(write(tmp_path, k + GOOD)) for k in ("", 'gap = "none"\n'))
    assert "until the host is quiet" in apart.fairness()["gap"]
    assert close.fairness()["gap"].startswith("none: ")
    fixed = [registration.settings({"plan": jsonable(made)}) for made in (apart, close)]
    assert registration.digest(fixed[0]) != registration.digest(fixed[1])


@pytest.mark.parametrize(
    ("key", "said", "remedy"),
    [
        ('page_cache = "cold"\n', "a calibration is of warm starts", "warm"),
        ('gap = "none"\n', "on a host that has settled", "quiet"),
    ],
)
def test_a_calibration_is_of_warm_starts_on_a_settled_host(
    tmp_path: Path, key: str, said: str, remedy: str
) -> None:
    """It says so to a plan that wants others."""
    done = faults.hvct("calibrate", "--plan", write(tmp_path, key + GOOD), "--dry-run")
    done.says(2, said, remedy)
