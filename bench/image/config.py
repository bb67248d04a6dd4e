"""What an OCI image says about running it, as our ImageConfig."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Any

from bench.errors import BadInput
from bench.image.users import Accounts, ids_of
from bench.model import Healthcheck, ImageConfig

DEFAULT_CHECK_S = 30.0  # a health check's interval and timeout, as container engines have it
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def parse(raw: Any, accounts: Accounts) -> ImageConfig:
    """Read the ``config`` object of an OCI image configuration; None for one without.

    Raises:
        BadInput: it is malformed, or names a user that the image does not have.
    """
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise _malformed("config")
    user = _text(raw, "User")
    env = [entry.partition("=") for entry in _texts(raw, "Env")]
    pairs = [(name, value) for name, equals, value in env if name and equals]
    if "PATH" not in dict(pairs):
        pairs.insert(0, ("PATH", DEFAULT_PATH))  # as container engines do
    workdir = _text(raw, "WorkingDir") or "/"
    stop_signal = _text(raw, "StopSignal") or "SIGTERM"
    signal_number(stop_signal)
    return ImageConfig(
        entrypoint=_texts(raw, "Entrypoint"),
        cmd=_texts(raw, "Cmd"),
        env=tuple(pairs),
        user=user,
        ids=ids_of(accounts, user),
        workdir=workdir if workdir.startswith("/") else f"/{workdir}",
        stop_signal=stop_signal,
        exposed_ports=_keys(raw, "ExposedPorts"),
        volumes=_keys(raw, "Volumes"),
        healthcheck=_healthcheck(raw),
    )


def _healthcheck(raw: dict[str, Any]) -> Healthcheck | None:
    """Docker's HEALTHCHECK: ``CMD`` with an argv, or ``CMD-SHELL`` with a line for the shell."""
    fields = raw.get("Healthcheck") or {}
    if not isinstance(fields, dict):
        raise _malformed("Healthcheck")
    kind, *words = _texts(fields, "Test") or ("NONE",)
    if kind == "NONE" or not words:
        return None
    if kind == "CMD-SHELL":
        words = [*(_texts(raw, "Shell") or ("/bin/sh", "-c")), *words]
    elif kind != "CMD":
        raise _malformed("Healthcheck")
    return Healthcheck(
        tuple(words),
        interval_s=_duration_s(fields, "Interval") or DEFAULT_CHECK_S,
        timeout_s=_duration_s(fields, "Timeout") or DEFAULT_CHECK_S,
        start_interval_s=_duration_s(fields, "StartInterval"),
    )


def _duration_s(fields: dict[str, Any], field: str) -> float:
    """A duration, which is in nanoseconds; 0 where there is none."""
    value = fields.get(field) or 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e18:
        raise _malformed(f"Healthcheck.{field}")
    return value / 1e9


def signal_number(text: str) -> int:
    """Number of a stop signal: ``SIGTERM``, ``TERM``, ``15`` or ``SIGRTMIN+3``.

    Raises:
        BadInput: there is no such signal.
    """
    name, plus, offset = text.upper().partition("+")
    try:
        number = int(name) if name.isdigit() else _named(name)
        number += int(offset) if plus else 0
        if not 1 <= number <= signal.SIGRTMAX:
            raise ValueError
    except (KeyError, ValueError) as error:
        raise BadInput(
            f"the image's stop signal {text!r} does not exist", "build it again"
        ) from error
    return number


def _named(name: str) -> int:
    return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])


def _malformed(field: str) -> BadInput:
    return BadInput(f"the image's configuration is malformed: {field}", "build the image again")


def _check(values: Iterable[Any], field: str) -> tuple[str, ...]:
    texts = tuple(values)
    if not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise _malformed(field)
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:  # half a character, which JSON can hold
        raise _malformed(field) from error
    return texts


def _text(raw: dict[str, Any], field: str) -> str:
    return _check([raw.get(field) or ""], field)[0]


def _texts(raw: dict[str, Any], field: str) -> tuple[str, ...]:
    values = raw.get(field) or []
    if not isinstance(values, list):
        raise _malformed(field)
    return _check(values, field)


def _keys(raw: dict[str, Any], field: str) -> tuple[str, ...]:
    values = raw.get(field) or {}
    if not isinstance(values, dict):
        raise _malformed(field)
    return tuple(sorted(_check(values, field)))
