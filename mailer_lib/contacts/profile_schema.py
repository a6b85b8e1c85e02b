"""The published JSON Schema of import profiles, for editors: ``docs/import-profile.schema.json``.

    python -m mailer_lib.contacts.profile_schema docs/import-profile.schema.json

It knows neither which lists and attributes there are nor which columns a file has; ``--dry-run`` does.
"""

import json
import sys
from pathlib import Path
from typing import Any

from mailer_lib.contacts.profile import Profile

# A profile's texts may be written without quotes; an editor then takes them for numbers and the like.
_SCALAR = ["string", "number", "boolean", "null"]


def schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a whole profile."""
    made = Profile.model_json_schema()
    for part in made["$defs"].values():
        for whole in (part, *part.get("anyOf", ())):
            _loosen(whole.get("properties", {}))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:mailfleet:import-profile:1",
        **made,
        "title": "Mailfleet import profile",
    }


def text() -> str:
    """As the file holds it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _loosen(properties: dict[str, Any]) -> None:
    for name in ("value", "yes", "no", "words"):
        for shape in (properties.get(name, {}), *properties.get(name, {}).get("anyOf", ())):
            for where in ("items", "additionalProperties"):
                if isinstance(shape.get(where), dict):
                    shape[where]["type"] = _SCALAR
            if name == "value" and shape.get("type") == "string":
                shape["type"] = _SCALAR[:3]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
