"""The schemas of report.json and cost-model.json, made from the classes these consist of."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from bench.ledger import MODEL_FORMAT, CostModel
from reports.model import FORMAT, ReportData

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """JSON Schema of report.json; it names every field and allows no other."""
    return _described(ReportData, "hvct report", FORMAT)


def cost_schema() -> dict[str, Any]:
    """JSON Schema of cost-model.json, as strict."""
    return _described(CostModel, "hvct cost model", MODEL_FORMAT)


def _described(kind: type, title: str, version: int) -> dict[str, Any]:
    made = TypeAdapter(kind).json_schema(mode="serialization")
    for part in (made, *made.get("$defs", {}).values()):
        if part.get("type") == "object" and "properties" in part:
            part["additionalProperties"] = False
            part["required"] = sorted(part["properties"])
            # A first line says what it is; how it is made in Python is no reader's business.
            part["description"] = str(part.get("description", "")).partition("\n")[0]
    made["properties"]["format"] = {"const": version, "description": "version of this schema"}
    return {"$schema": DIALECT, "title": f"{title}, format {version}", **made}


def text(made: dict[str, Any] | None = None) -> str:
    """A schema as it is published; by default the report's, docs/report-schema.json."""
    return json.dumps(made or schema(), indent=1, ensure_ascii=False) + "\n"
