"""The records that a run leaves of how it came about."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def write_records(out: Path, settings: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    """Write config.yaml and versions.json; where a run is resumed, the records before stay under "earlier"."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
    versions = out / "versions.json"
    earlier = []
    if versions.exists():
        before = json.loads(versions.read_text(encoding="utf-8"))
        earlier = [*before.pop("earlier", []), before]
    record = {**environment, "earlier": earlier} if earlier else environment
    versions.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
