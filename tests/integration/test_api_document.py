"""The commands of README.md and docs/api.md for the HTTP API, as a reader pastes them."""

import json
import re
from pathlib import Path

from devstack.stack import ROOT
from tests.curl import paste
from tests.integration.commands import Commands

ADDRESS = "http://127.0.0.1:8080"


def blocks(document: str, what: str) -> list[str]:
    """Give a document's shell blocks with a command."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if what in block]


def test_the_curl_lines_of_the_documents_do_what_they_say(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / ".data").mkdir()
    keys = {"CHECKOUT_API_KEYS_FILE": str(tmp_path / ".data/api-keys.json")}
    scopes = ("--scope", "buy", "--scope", "read", "--scope", "operate")
    made = commands.python_in(ROOT, "-m", "http_api.keys", "create", "reader", *scopes, **keys)
    (tmp_path / ".data/api.key").write_text(made.out, encoding="utf-8")
    _api, url = commands.ready_api(**keys)
    commands.ready_worker()

    answers = [
        paste(block.replace(ADDRESS, url), tmp_path)
        for document in ("README.md", "docs/api.md")
        for block in blocks(document, "curl ")
    ]

    bought, own, order, stream, listed, cancelled, audited = answers
    for answer in (bought, own):
        assert (answer.status, json.loads(answer.body)["status"]) == (201, "completed")
    assert (order.status, json.loads(order.body)["order_id"]) == (200, "web-1001")
    assert stream.status == 200
    assert re.findall(r"^event: (\w+)$", stream.body, re.MULTILINE) == ["status", "status", "status", "end"]
    assert {each["order_id"] for each in json.loads(listed.body)["orders"]} >= {"web-1001"}
    assert (cancelled.status, json.loads(cancelled.body)["type"]) == (409, "about:blank#refused")
    assert (audited.status, json.loads(audited.body)["violation_count"]) == (200, 0)


def test_the_commands_for_keys_make_list_and_are_as_documented(commands: Commands, tmp_path: Path) -> None:
    keys = {"CHECKOUT_API_KEYS_FILE": str(tmp_path / "api-keys.json")}
    [block] = blocks("docs/api.md", "http_api.keys")

    ran = [commands.python_in(ROOT, *line.split()[1:], **keys) for line in block.splitlines()]

    assert [each.code for each in ran] == [0, 0, 0]
    assert all(re.fullmatch(r"ck_k[0-9a-f]{8}_\S{43}\n", each.out) for each in ran[:2])
    assert [line.split()[1] for line in ran[2].out.splitlines()] == ["shop", "alices-app"]
