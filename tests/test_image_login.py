"""A registry with TLS of its own CA and a password, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from registries import PASSWORD, USER, Registry, serving

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A locked registry."""
    with serving(tmp_path_factory.mktemp("locked registry") / "r", locked=True) as made:
        yield made


class Command:
    """``hvct image …`` with a cache and a home of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            **os.environ,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "REGISTRY_AUTH_FILE": str(folder / "logins.json"),
            "HVCT_DEBUG": "1",  # so that it shows every program it starts
        }

    def __call__(self, *words: str | Path, said: str = "") -> faults.Done:
        """Run it, with something on its standard input."""
        argv = [sys.executable, "-m", "bench.cli", "image", *map(str, words)]
        done = subprocess.run(
            argv, input=said, capture_output=True, text=True, env=self.env, check=False
        )
        assert PASSWORD not in done.stderr + done.stdout, "no program has it among its arguments"
        return faults.Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def image(tmp_path: Path) -> Command:
    """The command."""
    return Command(tmp_path)


def test_certificate_password_and_login(image: Command, registry: Registry) -> None:
    """Each thing that is missing is told with what to do, and each way of giving it works."""
    there = f"{registry.host}/team/certificate-not-found:eof"  # words that errors hold too
    ca = f"--cert-dir={registry.certificates}"
    once = ("--username", USER, "--password-stdin")
    assert image("build", "busybox").code == 0

    refused = image("push", "busybox", there)
    assert refused.code == 2 and "certificate" in refused.err and "--cert-dir" in refused.err
    assert "image pull" not in refused.err, "what is told is for the command that was given"
    refused = image("push", "busybox", there, ca)
    assert refused.code == 2 and f"hvct image login {registry.host}" in refused.err
    refused = image("push", "busybox", there, ca, *once, said="wrong\n")
    assert refused.code == 2 and "does not give access" in refused.err

    pushed = image("push", "busybox", there, ca, *once, "--json", said=f"{PASSWORD}\n")
    assert pushed.code == 0, pushed.err
    digest = json.loads(pushed.out)["digest"]
    assert image("pull", there, ca).code == 2
    pulled = image("pull", there, ca, *once, said=PASSWORD)
    assert pulled.code == 0 and pulled.out.startswith(there), pulled.err
    assert image("remove", there).code == 0

    refused = image("login", registry.host, ca, *once, said="wrong")
    assert refused.code == 2 and "does not give access" in refused.err
    assert not (image.folder / "logins.json").exists()
    assert image("login", registry.host, ca, *once, said=PASSWORD).code == 0
    pulled = image("pull", f"{registry.host}/team/certificate-not-found@{digest}", ca)
    assert pulled.code == 0, pulled.err
    assert image("remove", f"{registry.host}/team/certificate-not-found@{digest}").code == 0
    (image.folder / "logins.json").rename(image.folder / "elsewhere.json")
    authfile = f"--authfile={image.folder / 'elsewhere.json'}"
    assert image("pull", there, ca).code == 2
    assert image("pull", there, "--tls-verify=false", authfile).code == 0
    assert image("logout", registry.host, authfile).code == 0
    assert image("remove", there).code == 0
    assert image("pull", there, ca, authfile).code == 2


def test_run_and_compare_take_what_was_pulled(image: Command, registry: Registry) -> None:
    """They have no options for registries: they say which command has, and then find the image."""
    there = f"{registry.host}/team/run-me:1"
    ca = f"--cert-dir={registry.certificates}"
    assert image("build", "busybox").code == 0
    assert image("login", registry.host, ca, f"--username={USER}", "--password-stdin",
                 said=PASSWORD).code == 0  # fmt: skip
    assert image("push", "busybox", there, ca).code == 0
    compare = ("compare", "--image", there, "--arms", "container,process", "--dry-run", "--json")
    run = ("run", there, "--", "echo", "ran")

    def said(*words: str) -> faults.Done:
        return faults.hvct(*words, env={**image.env, "HVCT_DEBUG": ""})

    away = ("image", "push", "busybox", "127.0.0.1:9/team/app")
    said(*away).says(
        3, "127.0.0.1:9 cannot be reached: connection refused", "name of the registry$"
    )
    said(*run).says(2, "certificate", f"hvct image pull {there} --cert-dir FOLDER")
    assert image("pull", there, ca).code == 0
    done = said(*run)
    assert (done.code, done.out) == (0, "ran\n"), done
    done = said(*compare, "--", "true")
    assert json.loads(done.out)["plan"]["workloads"][0]["image"] == there


def test_options_that_make_no_sense(image: Command, registry: Registry, tmp_path: Path) -> None:
    """A user without a password, a folder that is none, a reference that is none."""
    there = f"{registry.host}/team/bb:1"
    assert "belong together" in image("pull", there, "--username", "me").err
    assert "is no folder" in image("pull", there, f"--cert-dir={tmp_path / 'none'}").err
    assert "is no file" in image("pull", there, f"--authfile={tmp_path / 'none'}").err
    assert "is no image reference" in image("pull", "Upper/Case").err
    assert "no terminal" in image("login", registry.host).err
    assert "is no registry" in image("logout", "a/b").err
    for words in (
        ("pull", "Upper/Case"),
        ("login", registry.host),
        ("pull", there, "--username=x"),
    ):
        assert image(*words).code == 2
