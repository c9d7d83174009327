"""The API keeps to its description: no 5xx and no answer that it does not have, whatever is sent."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.http_api.conftest import Api

CONFIG = Path(__file__).parent / "schemathesis.toml"
_SCHEMATHESIS = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    "cases", [15, pytest.param(500, marks=[pytest.mark.exhaustive, pytest.mark.timeout(3600)])], ids=str
)
async def test_no_request_gets_a_5xx_or_an_undocumented_answer(api: Api, tmp_path: Path, cases: int) -> None:
    """With 500 cases of each operation, beside those of its boundaries, it is over 10 000 requests."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _SCHEMATHESIS,
        f"--config-file={CONFIG}",
        "run",
        f"{api.url}/openapi.json",
        f"--header=Authorization: Bearer {api.key}",
        f"--max-examples={cases}",
        "--request-timeout=30",
        "--no-color",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()

    assert process.returncode == 0, said.decode()[-40_000:]
