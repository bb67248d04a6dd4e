"""Plain facts as rows: host, images, provenance, disturbances, what was set up."""

from __future__ import annotations

import json
import re
from typing import Any

from bench.numbers import format_value
from reports import wording
from reports.model import RunReport

MOST_ROWS = 12
"""Facts under one name above which they stand together as a block."""

LONG_TEXT = 160
"""Characters above which a fact is shown as a block of its own."""


def trials_line(run: RunReport) -> str:
    """How much of the plan was measured."""
    counts = run.counts
    text = (
        f"{counts['blocks']} of {counts['blocks_planned']} blocks are complete: "
        f"{counts['trials']:,} of {counts['planned']:,} planned trials."
    )
    if counts["excluded"]:
        text += f" {wording.count(counts['excluded'], 'trial')} of blocks cut short are left out."
    if counts["blocks_invalid"]:
        text += (
            f" {wording.count(counts['blocks_invalid'], 'block')} in part left out of the verdicts "
            "by the plan's rules about the host; every figure stands both ways below."
        )
    return text if run.failures else text + " Every trial ended well."


def image_rows(run: RunReport) -> list[tuple[str, str]]:
    """Each image with digest, source and size."""
    rows = []
    for name, image in run.images.items():
        if isinstance(image, dict):
            parts = [str(image.get("digest", "")), str(image.get("source", ""))]
            if isinstance(image.get("size_bytes"), int):
                parts.append(format_value(float(image["size_bytes"]), "bytes"))
            parts.append(str(image.get("architecture", "")))
            rows.append((name, " · ".join(part for part in parts if part)))
    return rows


def disturbances(run: RunReport) -> list[dict[str, Any]]:
    """A row per reading, a cell per arm."""
    names = dict.fromkeys((item.name, item.title) for item in run.disturbances)
    found = {(item.name, item.arm): item.text for item in run.disturbances}
    return [
        {"title": title, "cells": [found.get((name, arm.name), "–") for arm in run.arms]}
        for name, title in names
    ]


def provenance(run: RunReport) -> list[tuple[str, str]]:
    """Where every number came from."""
    return [
        ("run", run.id),
        ("begun", run.created),
        ("ended", run.ended or "not ended"),
        ("seed", run.seed),
        ("hvct", run.version),
        ("settled beforehand", registered(run)),
        *((f"{name}, digest", digest or "no such file") for name, digest in run.digests.items()),
    ]


def registered(run: RunReport) -> str:
    """Whether margins, judged metrics and n are those that were fixed before the first trial."""
    digest, changed = run.registration["digest"], run.registration["deviations"]
    if not digest:
        return "nothing was registered: the run is of a version that did not"
    if changed:
        return f"{digest}, and changed since: {'; '.join(changed)}"
    return f"{digest}: margins, judged metrics, n and rules are as they were registered"


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested facts as rows; what is not known is left out."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in flat(inner, f"{name} {key}")]
    if value is None or value == "" or value == []:
        return []
    label = wording.words(name).strip()
    if isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        text = ", ".join(str(item) for item in value)
    elif isinstance(value, list):
        text = json.dumps(value, ensure_ascii=False)
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, int) and label.endswith("bytes"):
        label, text = label.removesuffix(" bytes"), format_value(float(value), "bytes")
    else:
        text = str(value)
    return [(label, text)]


def host(run: RunReport) -> list[tuple[str, str]]:
    """The host's facts; what it is not vulnerable to stands in one row."""
    start, clear = "kernel mitigations ", "Not affected"
    rows = flat(run.host)
    names = [name.removeprefix(start) for name, text in rows
             if name.startswith(start) and text == clear]  # fmt: skip
    kept = [row for row in rows if row[0].removeprefix(start) not in names or row[1] != clear]
    return [*kept, (start + "not needed for", ", ".join(names))] if names else kept


def descriptions(run: RunReport) -> list[dict[str, Any]]:
    """What each arm said it had set up: short facts as rows, long ones as blocks."""
    labels = {arm.name: arm.label for arm in run.arms}
    found = []
    for name, about in run.descriptions.items():
        rows: list[tuple[str, str]] = []
        blocks: list[tuple[str, str]] = []
        for key, value in (about if isinstance(about, dict) else {"what": about}).items():
            lines = flat(value, str(key))
            if len(lines) > MOST_ROWS:
                prefix = wording.words(str(key))
                texts = (f"{label.removeprefix(prefix).strip():60} {text}" for label, text in lines)
                blocks.append((prefix, "\n".join(texts)))
                continue
            for label, text in lines:
                if "\n" in text or len(text) > LONG_TEXT:
                    blocks.append((label, indented(text)))
                else:
                    rows.append((label, text))
        found.append({"label": labels.get(name, name), "rows": rows, "blocks": blocks})
    return found


def indented(text: str) -> str:
    """XML that stands on one line, a line per element; other text as it is."""
    if "\n" in text.strip() or not text.lstrip().startswith("<"):
        return text
    lines, depth = [], 0
    for part in re.split(r"(?<=>)(?=<)", text):
        closing = part.startswith("</")
        depth = max(0, depth - closing)
        lines.append("  " * depth + part)
        depth += not closing and not part.endswith("/>") and "</" not in part and part[1:2] != "?"
    return "\n".join(lines)
