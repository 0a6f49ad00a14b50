"""Read one JSON object from a file that others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from handlens_export.errors import CheckpointError


def read_text(path: Path) -> str:
    """The UTF-8 text of `path`; CheckpointError naming the file where that is not possible."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; copy it from where the checkpoint was saved.") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8 text, so it is damaged; copy it again.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; CheckpointError naming the file where there is none."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise CheckpointError(f"{path} is not valid JSON ({reason}); copy it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, not an object; copy it again.")
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    """As `read_json`, but an absent file is an empty object."""
    return read_json(path) if path.exists() else {}
