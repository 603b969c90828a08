"""Print the JSON schema of a record."""

from __future__ import annotations

import json
import sys

from dfqbench.run.store.record import Record

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> str:
    """Return the JSON schema of a record, as text."""
    return json.dumps({"$schema": DIALECT} | Record.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(json_schema())
