"""The schema of report.json, made from the classes that the report consists of."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from reports.model import FORMAT, ReportData

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """JSON Schema of report.json; it names every field and allows no other."""
    made = TypeAdapter(ReportData).json_schema(mode="serialization")
    for part in (made, *made.get("$defs", {}).values()):
        if part.get("type") == "object" and "properties" in part:
            part["additionalProperties"] = False
            part["required"] = sorted(part["properties"])
            # A first line says what it is; how it is made in Python is no reader's business.
            part["description"] = str(part.get("description", "")).partition("\n")[0]
    made["properties"]["format"] = {"const": FORMAT, "description": "version of this schema"}
    return {"$schema": DIALECT, "title": f"hvct report, format {FORMAT}", **made}


def text() -> str:
    """The schema as it is published, docs/report-schema.json."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
