"""What decides a folder's results, kept beside them: a later run has to ask for the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechzoo.system.files import read_json, write_json


def changed(marker: Path, settings: Mapping[str, Any]) -> str:
    """What is otherwise than the marker says, as `key: 3 there, 4 asked`; empty where nothing is.

    A marker that is not there is written.

    Raises:
        ValueError: if it is no JSON object.
    """
    asked = json.loads(json.dumps(settings))
    if not marker.is_file():
        write_json(marker, asked)
        return ""
    there = read_json(marker)
    keys = [key for key in sorted({*there, *asked}) if there.get(key) != asked.get(key)]
    return ", ".join(f"{key}: {_brief(there.get(key))} there, {_brief(asked.get(key))} asked" for key in keys)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
