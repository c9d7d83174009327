"""What the recorders of histories have in common: `tests.workflow.record` and `tests.sagafence.record`."""

import json
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from temporalio.client import WorkflowHandle


def asked_for(scenes: Collection[str], folder: Path, usage: str) -> list[str] | None:
    """Return the scenes to record by the command line, those without a recording by default; None where it is wrong."""
    again = sys.argv[2:] if sys.argv[1:2] == ["--again"] else []
    if len(sys.argv) > 1 and (not again or set(again) - set(scenes)):
        sys.stderr.write(f"{usage}\nThe scenes are: {', '.join(scenes)}\n")
        return None
    folder.mkdir(exist_ok=True)
    return again or [name for name in scenes if not (folder / f"{name}.json").exists()]


async def save(handle: WorkflowHandle[Any, Any], folder: Path, name: str) -> None:
    """Write the history of a run that has ended."""
    history = await handle.fetch_history()
    (folder / f"{name}.json").write_text(scrubbed(history.to_json()), encoding="utf-8")
    status = (await handle.describe()).status
    sys.stdout.write(f"{name}: {status.name if status else 'unknown'}, {len(history.events)} events\n")


def scrubbed(history: str) -> str:
    """Take this machine, its worker and its paths out of a history."""
    plain = re.sub(r'"\d+@[^"]*"', '"somebody"', history)
    plain = re.sub(r'("stackTrace": ")(?:[^"\\]|\\.)*"', r'\1"', plain)
    return json.dumps(json.loads(plain), indent=1, ensure_ascii=False) + "\n"
