"""docs/openapi.json and docs/api.md against the API: callers make their clients of them."""

import re
import subprocess
import sys
from http import HTTPStatus

from devstack.stack import ROOT
from http_api.problems import name_of

_MAKE = "python api.py --openapi > docs/openapi.json"


def test_the_description_of_the_api_is_the_one_of_todays_code() -> None:
    printed = subprocess.run(
        [sys.executable, "api.py", "--openapi"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert (ROOT / "docs/openapi.json").read_text(encoding="utf-8") == printed, f"run: {_MAKE}"


def test_a_status_is_called_the_same_with_every_python() -> None:
    named = [HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.NOT_FOUND]

    assert [name_of(status) for status in named] == ["Content Too Large", "Unprocessable Content", "Not Found"]


def test_every_kind_of_problem_is_documented_with_its_status_and_no_other() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "http_api").glob("*.py"))
    document = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d{3}) \| (`[a-z`, -]+`) \|", document, re.MULTILINE)

    made = {(int(HTTPStatus[name]), kind) for name, kind in re.findall(r'HTTPStatus\.(\w+),\s*"([a-z-]+)",', source)}
    # By Starlette: an address or a method that there is not. A fault of the service is no answer to any input.
    made = (made | {(404, "not-found"), (405, "method-not-allowed")}) - {(500, "internal")}

    assert {(int(status), kind) for status, kinds in rows for kind in re.findall(r"[a-z-]+", kinds)} == made
