"""The provider of the second example: it has to be as trustworthy as real ones are, or what it shows proves nothing."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import pytest

from devstack.stack import ROOT
from examples.workspace.provider.process import ProviderProcess
from examples.workspace.provider.proxy import Fault, FaultProxy

COMMAND = [sys.executable, "-m", "examples.workspace.provider"]
WS = {"reference": "ws-1", "subdomain": "acme"}
BILL = {"reference": "ws-1", "plan": "team"}


class Heard(NamedTuple):
    status: int
    body: Any
    replayed: bool


def ask(url: str, method: str, target: str, body: Any = None, key: str | None = None) -> Heard:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
        headers = {} if key is None else {"Idempotency-Key": key}
        connection.request(method, target, body if isinstance(body, bytes) else json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        return Heard(
            answer.status, json.loads(content) if content else None, answer.getheader("Idempotent-Replayed") == "true"
        )


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[ProviderProcess]:
    with ProviderProcess(tmp_path / "state") as process:
        yield process


def test_the_first_answer_under_a_key_is_given_again_and_marked(provider: ProviderProcess) -> None:
    first = ask(provider.url, "POST", "/tenants", WS, "k/tenant")
    again = ask(provider.url, "POST", "/tenants", WS, "k/tenant")

    assert (first.status, first.replayed) == (201, False)
    assert again == Heard(201, first.body, replayed=True)
    assert provider.books()["tenants"] == [{"id": first.body["id"], **WS, "deleted": 0}]


@pytest.mark.parametrize(
    ("target", "body", "status", "error"),
    [
        ("/tenants", {**WS, "subdomain": "admin"}, 422, "forbidden_subdomain"),
        ("/invoices", {**BILL, "plan": "pilot"}, 402, "not_billable"),
        ("/mails", {"reference": "ws-1", "template": "farewell"}, 422, "unknown_template"),
    ],
)
def test_a_refusal_is_stored_as_well(
    provider: ProviderProcess, target: str, body: dict[str, str], status: int, error: str
) -> None:
    first = ask(provider.url, "POST", target, body, "k")
    again = ask(provider.url, "POST", target, body, "k")

    assert (first.status, first.body["error"], first.replayed) == (status, error, False)
    assert again == Heard(status, first.body, replayed=True)
    assert not any(provider.books().values())


def test_a_key_with_other_content_is_refused_and_nothing_happens(provider: ProviderProcess) -> None:
    ask(provider.url, "POST", "/tenants", WS, "k")

    other = ask(provider.url, "POST", "/tenants", {**WS, "subdomain": "other"}, "k")

    assert (other.status, other.body["error"]) == (422, "key_reused")
    assert ask(provider.url, "POST", "/tenants", WS, "k").replayed
    assert len(provider.books()["tenants"]) == 1


@pytest.mark.parametrize(
    ("body", "key"),
    [(WS, None), (b"{", "k"), (["a list"], "k"), ({"reference": "ws-1"}, "k"), ({**WS, "subdomain": 7}, "k")],
    ids=["no key", "no JSON", "no object", "a field is missing", "a number"],
)
def test_a_malformed_request_is_about_itself_and_leaves_its_key_free(
    provider: ProviderProcess, body: Any, key: str | None
) -> None:
    assert ask(provider.url, "POST", "/tenants", body, key).status == 400

    assert ask(provider.url, "POST", "/tenants", WS, "k").status == 201


def test_keys_of_one_api_are_no_keys_of_another(provider: ProviderProcess) -> None:
    assert ask(provider.url, "POST", "/tenants", WS, "k").status == 201
    assert ask(provider.url, "POST", "/invoices", BILL, "k").status == 201


def test_a_tenant_can_be_deleted_again_and_a_late_repeat_does_not_bring_it_back(provider: ProviderProcess) -> None:
    tenant = ask(provider.url, "POST", "/tenants", WS, "k").body["id"]
    assert [each["id"] for each in ask(provider.url, "GET", "/tenants?reference=ws-1").body] == [tenant]

    assert [ask(provider.url, "DELETE", f"/tenants/{tenant}").status for _ in range(2)] == [204, 204]
    assert ask(provider.url, "POST", "/tenants", WS, "k").replayed
    assert ask(provider.url, "GET", "/tenants?reference=ws-1").body == []
    assert [each["deleted"] for each in provider.books()["tenants"]] == [1]
    assert ask(provider.url, "DELETE", "/tenants/7777").status == 404


def test_what_there_is_not_is_not_found_and_a_list_needs_a_reference(provider: ProviderProcess) -> None:
    assert ask(provider.url, "GET", "/tenants").status == 400
    assert ask(provider.url, "GET", "/nothing").status == 404
    assert ask(provider.url, "DELETE", "/invoices/1").status == 404


def test_a_key_that_was_voided_first_is_never_billed(provider: ProviderProcess) -> None:
    key = "open workspace/1 ?#/billing"
    void = f"/invoices/{quote(key, safe='')}/void"

    assert [ask(provider.url, "POST", void).status for _ in range(2)] == [200, 200]
    late = ask(provider.url, "POST", "/invoices", BILL, key)
    provider.forget_keys()
    later = ask(provider.url, "POST", "/invoices", BILL, key)

    assert [(each.status, each.body["error"]) for each in (late, later)] == [(409, "voided")] * 2
    assert provider.books()["invoices"] == []
    assert provider.books()["voids"] == [key]


def test_a_void_of_what_was_billed_answers_with_the_invoice_even_when_the_key_is_forgotten(
    provider: ProviderProcess,
) -> None:
    invoice = ask(provider.url, "POST", "/invoices", BILL, "ws-1/billing").body

    before = ask(provider.url, "POST", "/invoices/ws-1%2Fbilling/void")
    provider.forget_keys(path="/invoices")
    after = ask(provider.url, "POST", "/invoices/ws-1%2Fbilling/void")

    assert [(each.status, each.body["error"], each.body["invoice"]) for each in (before, after)] == [
        (409, "already_billed", invoice)
    ] * 2
    assert provider.books()["voids"] == []
    assert ask(provider.url, "GET", "/invoices?reference=ws-1").body == [invoice]


def test_a_refused_bill_can_be_voided(provider: ProviderProcess) -> None:
    assert ask(provider.url, "POST", "/invoices", {**BILL, "plan": "pilot"}, "k").status == 402

    assert ask(provider.url, "POST", "/invoices/k/void").status == 200


def test_a_forgotten_key_acts_again_and_the_books_count_both_charges(provider: ProviderProcess) -> None:
    for key in ("a", "b"):
        ask(provider.url, "POST", "/invoices", {**BILL, "reference": key}, key)

    provider.forget_keys(path="/invoices", key="a")

    assert not ask(provider.url, "POST", "/invoices", {**BILL, "reference": "a"}, "a").replayed
    assert ask(provider.url, "POST", "/invoices", {**BILL, "reference": "b"}, "b").replayed
    assert provider.books()["charges"] == {"a": 2, "b": 1}


def until_in_progress(provider: ProviderProcess, key: str) -> None:
    deadline = time.monotonic() + 30
    while provider.books()["in_progress"] != [key]:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_key_is_in_progress_while_its_first_request_is_at_work(tmp_path: Path) -> None:
    with ProviderProcess(tmp_path / "state", takes=3.0) as provider, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, provider.url, "POST", "/invoices", BILL, "k")
        until_in_progress(provider, "k")
        meanwhile = [
            ask(provider.url, "POST", "/invoices", BILL, "k"),
            ask(provider.url, "POST", "/invoices/k/void"),
        ]
        assert first.result().status == 201
        after = ask(provider.url, "POST", "/invoices", BILL, "k")

    assert [(each.status, each.body["error"], each.replayed) for each in meanwhile] == [(409, "in_progress", False)] * 2
    assert after == Heard(201, first.result().body, replayed=True)


def test_many_at_once_under_one_key_have_one_effect(tmp_path: Path) -> None:
    with ProviderProcess(tmp_path / "state", takes=0.02) as provider, ThreadPoolExecutor(32) as pool:
        heard = list(pool.map(lambda _: ask(provider.url, "POST", "/invoices", BILL, "k"), range(200)))
        books = provider.books()

    assert books["charges"] == {"ws-1": 1}
    assert set(Counter(each.status for each in heard)) <= {201, 409}
    assert [each.replayed for each in heard if each.status == 201].count(False) == 1
    assert {each.body["error"] for each in heard if each.status == 409} <= {"in_progress"}


def test_bill_and_void_at_once_end_as_one_of_them(provider: ProviderProcess) -> None:
    with ThreadPoolExecutor(2) as pool:
        for n in range(100):
            bill = pool.submit(ask, provider.url, "POST", "/invoices", {**BILL, "reference": f"{n}"}, f"{n}")
            void = pool.submit(ask, provider.url, "POST", f"/invoices/{n}/void")
            while (voided := void.result()).status == 409 and voided.body["error"] == "in_progress":
                void = pool.submit(ask, provider.url, "POST", f"/invoices/{n}/void")
            assert (bill.result().status, voided.status) in {(201, 409), (409, 200)}
    books = provider.books()

    billed, voided_keys = {each["key"] for each in books["invoices"]}, set(books["voids"])
    assert billed | voided_keys == {f"{n}" for n in range(100)}
    assert billed & voided_keys == set()


def test_what_was_answered_before_a_kill_is_there_after_it(provider: ProviderProcess) -> None:
    answered: dict[str, Any] = {}
    killing = threading.Lock()

    def bill(n: int) -> None:
        try:
            heard = ask(provider.url, "POST", "/invoices", {**BILL, "reference": f"{n}"}, f"{n}")
        except (OSError, http.client.HTTPException):
            return
        answered[f"{n}"] = heard.body
        if len(answered) >= 50:
            with killing:  # by whoever hears it: another thread may be much later
                provider.kill()

    ask(provider.url, "POST", "/invoices/voided/void")
    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(bill, n) for n in range(600)]:
            each.result()
    assert 50 <= len(answered) < 600

    provider.start()

    for key, body in answered.items():
        assert ask(provider.url, "POST", "/invoices", {**BILL, "reference": key}, key) == Heard(
            201, body, replayed=True
        )
    for n in range(600):
        ask(provider.url, "POST", "/invoices", {**BILL, "reference": f"{n}"}, f"{n}")
    assert provider.books()["charges"] == {f"{n}": 1 for n in range(600)}
    assert ask(provider.url, "POST", "/invoices", BILL, "voided").body["error"] == "voided"


def test_what_was_in_progress_at_a_kill_has_had_no_effect_and_its_key_is_free(tmp_path: Path) -> None:
    with ProviderProcess(tmp_path / "state", takes=30.0) as provider, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, provider.url, "POST", "/invoices", BILL, "k")
        until_in_progress(provider, "k")
        provider.kill()
        assert isinstance(first.exception(), (OSError, http.client.HTTPException))
    with ProviderProcess(tmp_path / "state") as provider:
        assert provider.books()["invoices"] == []
        assert ask(provider.url, "POST", "/invoices", BILL, "k").status == 201


def test_it_says_where_it_is_in_one_line_and_ends_well_when_asked(tmp_path: Path) -> None:
    for asked in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(
            [*COMMAND, "--port", "0", "--state", str(tmp_path / "state")], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert ready["pid"] == process.pid
            assert ask(ready["url"], "GET", "/books").status == 200
            process.send_signal(asked)
            assert process.wait(10) == 0
            assert process.stdout.read() == ""


def test_it_ends_when_whoever_started_it_has_died(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from examples.workspace.provider.process import ProviderProcess\n"
        "provider = ProviderProcess(Path(sys.argv[1])); provider.start(); print(provider.url, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "state")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    address = urlsplit(done.stdout.strip())

    deadline = time.monotonic() + 10
    while True:
        with closing(socket.socket()) as probe:
            if probe.connect_ex((address.hostname, address.port)):
                break
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--state", "/no/such/folder/state"], 1, "unable to open database file"),
        (["--state", "{state}", "--port", "{taken}"], 1, "in use"),
        (["--state", "{state}", "--port", "70000"], 1, "must be 0-65535"),
        ([], 2, "--state"),
    ],
    ids=["no such folder", "a port that is taken", "no port", "no state"],
)
def test_it_says_why_it_cannot_start(
    tmp_path: Path, provider: ProviderProcess, arguments: list[str], status: int, says: str
) -> None:
    values = {"state": tmp_path / "other", "taken": urlsplit(provider.url).port}
    command = [*COMMAND, *(each.format(**values) for each in arguments)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (status, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


# The faults before it.


def heard_through(proxy: FaultProxy, fault: Fault | None) -> Heard | None:
    if fault is not None:
        proxy.strike(fault, "POST", "/invoices")
    try:
        with closing(http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=30)) as connection:
            connection.request("POST", "/invoices", json.dumps(BILL), {"Idempotency-Key": "k"})
            answer = connection.getresponse()
            content = answer.read()
    except (OSError, http.client.HTTPException):
        return None
    return Heard(
        answer.status,
        json.loads(content) if answer.getheader("Content-Type") == "application/json" else content,
        answer.getheader("Idempotent-Replayed") == "true",
    )


@pytest.mark.parametrize(
    ("fault", "status", "charges"),
    [
        (Fault.CUT_BEFORE, None, 0),
        (Fault.CUT_AFTER, None, 1),
        (Fault.SAYS_500, 500, 1),
        (Fault.SAYS_503, 503, 0),
        (Fault.SLOW, 201, 1),
        (Fault.LATE, None, 0),
        (Fault.TWICE, 201, 1),
        (Fault.TWICE_AT_ONCE, 201, 1),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else None,
)
def test_a_fault_is_heard_as_such_and_strikes_once(
    provider: ProviderProcess, fault: Fault, status: int | None, charges: int
) -> None:
    with FaultProxy(provider.url, slow_seconds=0.05) as proxy:
        heard = heard_through(proxy, fault)

        # Of two at once either answer comes back, and the second may meet the first at work.
        assert (heard and heard.status) in ({status, 409} if fault is Fault.TWICE_AT_ONCE else {status})
        assert provider.books()["charges"] == ({"ws-1": charges} if charges else {})
        assert proxy.struck == {fault: 1}
        again = heard_through(proxy, None)
        assert again is not None
        assert (again.status, again.replayed) == (201, charges == 1)
        assert proxy.struck == {fault: 1}
    assert heard is None or not heard.replayed or fault in {Fault.TWICE, Fault.TWICE_AT_ONCE}


def test_a_late_request_arrives_when_nobody_waits_for_it_any_more(provider: ProviderProcess) -> None:
    with FaultProxy(provider.url) as proxy:
        assert heard_through(proxy, Fault.LATE) is None
        assert proxy.kept == 1
        assert ask(proxy.url, "POST", "/invoices/k/void").status == 200

        assert proxy.deliver_late() == [409]
        assert proxy.kept == 0
    assert provider.books()["invoices"] == []


def test_a_late_request_arrives_by_itself_where_it_was_told_when(provider: ProviderProcess) -> None:
    with FaultProxy(provider.url, late_seconds=0.05) as proxy:
        assert heard_through(proxy, Fault.LATE) is None

        deadline = time.monotonic() + 10
        while not provider.books()["invoices"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert proxy.deliver_late() == []


def test_a_provider_that_is_down_breaks_the_connection_and_is_found_again(provider: ProviderProcess) -> None:
    with FaultProxy(provider.url) as proxy:
        provider.kill()
        assert heard_through(proxy, None) is None
        provider.start()
        assert heard_through(proxy, None) is not None


def test_faults_by_chance_follow_from_their_seed(provider: ProviderProcess) -> None:
    drawn = []
    for _ in range(2):
        with FaultProxy(provider.url) as proxy:
            proxy.strike_at_random(0.5, 7, [Fault.CUT_BEFORE, Fault.SAYS_503])
            drawn.append([heard_through(proxy, None) for _ in range(40)])
            assert proxy.struck.total() == sum(each is None or each.status == 503 for each in drawn[-1])
            proxy.heal()
            assert (heard_through(proxy, None) or drawn[-1][0]) is not None
            assert proxy.struck.total() < 40

    outcomes = [[each and each.status for each in run] for run in drawn]
    assert outcomes[0] == outcomes[1]
    assert {None, 201, 503} == set(outcomes[0])
