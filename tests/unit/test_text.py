"""Text from outside at each edge: nothing acts, nothing hides, and what is harmless shows as it is."""

import io
import json
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from markdown_it import MarkdownIt
from rich.table import Table

import starter
from adapters.event_log import line as event_line
from adapters.log_setup import JsonFormatter, TextFormatter
from adapters.streams import CleanStream
from adapters.terminal import Terminal, styled
from client.failures import Refused
from client.listing import Listed
from client.order_list import Listing
from domain import summaries
from domain.audit import AuditReport, Violation
from domain.bulk import Outcome
from domain.model import CheckoutInput, CheckoutStatus, OrderLine, StepView
from domain.sweep import SweepReport
from domain.text import code, for_log_line, for_markdown, for_summary, for_terminal, json_text, on_one_line
from sagafence import InvalidInput
from terminal import view
from terminal.load.bulk import BulkReport, print_bulk
from terminal.load.made_up import LoadReport, print_load
from terminal.session import Work
from tests import outside
from workflows import wording

SEED = 20261128
AT = datetime(2026, 11, 28, tzinfo=UTC)
HARMLESS = (
    "order-1", "#1001", "gid://shop/Order/450", "anna@example.com", "TSHIRT/RED M", "ÄÖ-7", "tea_mug_2", "日本語 😀",
    "a  b", "OutOfStock: tea-mug: 5 wanted, 2 free (of 3)",
)  # fmt: skip


# What is harmless --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HARMLESS)
@pytest.mark.parametrize("edge", [for_terminal, on_one_line, for_log_line, for_markdown])
def test_what_is_harmless_shows_as_it_is(edge: Callable[[str], str], text: str) -> None:
    assert edge(text) == text


def test_what_may_not_be_shown_is_seen_as_an_escape() -> None:
    text = "a\x1b[31mb\u202ec\u200bd\U000e0041e\x85f\u3164"

    assert for_terminal(text) == r"a\x1b[31mb\u202ec\u200bd\U000e0041e\x85f\u3164"
    assert for_terminal("one\n\ttwo\r\n") == "one\n two\\x0d\n"
    assert on_one_line("one\ntwo") == r"one\ntwo"
    assert for_log_line("one\r\ntwo\x1bthree") == r"one  two\x1bthree"


def test_markdown_shows_what_is_active_as_code() -> None:
    assert for_markdown("![x](http://evil.test)") == "`![x](http://evil.test)`"
    assert for_markdown("a`b``c") == "```a`b``c```"
    assert code("`x`") == "`` `x` ``"
    assert for_summary("x" * 100) == "x" * 39 + "…"


# Fuzz: each case goes through every function, and through one of what is put together of them --------------------


def test_no_text_from_outside_acts_at_an_edge() -> None:
    fuzz(2_000)


@pytest.mark.parametrize("share", range(10))
def test_none_of_a_hundred_thousand_texts_from_outside_acts_at_an_edge(share: int) -> None:
    fuzz(10_000, SEED + 1 + share)


def fuzz(cases: int, seed: int = SEED) -> None:
    draw = random.Random(seed)
    for number in range(cases):
        text = outside.text(draw)
        for check in (check_functions, WHOLE[number % len(WHOLE)]):
            try:
                check(text)
            except Exception as failure:
                raise AssertionError(f"case {number}, {check.__name__}: {text!a}") from failure


def check_functions(text: str) -> None:
    assert_harmless(for_terminal(text))
    assert_harmless(on_one_line(text), allowed="")
    log_line = for_log_line(text)
    assert len(log_line.splitlines()) <= 1
    # What is printable and seen by nobody may be in an order's id, which a log has as the database has it.
    assert not [found for found in outside.raw_controls(log_line, "") if found not in INVISIBLE]
    assert json_text({text: [text]}).isascii()
    assert_harmless(json_text({text: [text]}), allowed="")
    assert json.loads(json_text([text])) == [text]
    assert_inert(f"value {for_markdown(text)} and {for_summary(text)}", text)


INVISIBLE = outside.raw_controls("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u3164\uffa0")
MARKDOWN = MarkdownIt("commonmark")


def assert_harmless(shown: str, allowed: str = outside.ALLOWED_CONTROLS) -> None:
    assert outside.raw_controls(shown, allowed) == [], ascii(shown)
    shown.encode()


def assert_inert(markdown: str, text: str) -> None:
    """Let a renderer of Markdown find nothing in a line but text and code, and the value in it as it was written."""
    found = [token for block in MARKDOWN.parse(markdown) for token in block.children or [block]]
    assert {token.type for token in found} <= {"paragraph_open", "paragraph_close", "text", "code_inline"}, markdown
    content = "".join(token.content for token in found)
    assert content.startswith(f"value {on_one_line(text).strip()}") or on_one_line(text) != on_one_line(text).strip()


def shown_by(show: Callable[[], object], monkey: pytest.MonkeyPatch) -> str:
    """Give what is printed on a terminal, without the colours that are our own."""
    out, err = io.StringIO(), io.StringIO()
    monkey.setattr(view, "console", Terminal(file=out, force_terminal=True, width=3_000))
    monkey.setattr(view, "errors", Terminal(file=err, force_terminal=True, soft_wrap=True))
    show()
    return outside.without_own_sequences(out.getvalue() + err.getvalue())


def check_shown(show: Callable[[str], object], lines: int | None = None) -> Callable[[str], None]:
    """Check what a function of the view prints: its own lines, and no more, whatever is in a value."""

    def check(text: str) -> None:
        with pytest.MonkeyPatch.context() as monkey:
            shown = shown_by(lambda: show(text), monkey)
        assert_harmless(shown)
        if lines is not None:
            assert len(shown.splitlines()) == lines, ascii(shown)

    check.__name__ = getattr(show, "__name__", "check")
    return check


def order(text: str) -> None:
    steps = [StepView(text, text, text)]
    status = CheckoutStatus(text, text, text, 1, text[:3], text, steps)
    view.print_order(status, text, "http://ui/" + text.replace("\n", ""), as_json=False)


def listed(text: str) -> None:
    view.print_list(Listing([(Listed(text, text, text, AT, AT), text)], text), lambda place: place, as_json=False)


def audit(text: str) -> None:
    view.print_audit(AuditReport({text: text}, [Violation(text, text, text)], 1, {text: 1}))


def clean_audit(text: str) -> None:
    view.print_audit(AuditReport({text: text}, [], 0, {text: 1, "stuck": 1}))


def sweep(text: str) -> None:
    view.print_sweep(SweepReport([text], 1, [text], 1, 1, [text], 1, [text], 1), as_json=False)


def load(text: str) -> None:
    print_load(LoadReport(1, 1, "happy", 1.0, Counter({text: 1}), [text]), as_json=False)


def bulk(text: str) -> None:
    print_bulk(BulkReport(1.0, Counter({text: 1}), 1), Path(text.replace("\0", "")), as_json=False)


def error(text: str) -> None:
    view.errors.print(f"refused: {text}", style="red")


def table(text: str) -> None:
    made = Table(text, title=text, caption=text)
    made.add_row(text, styled("[bold]ours[/]"))
    view.console.print(made, text, [text])


def usage(text: str) -> None:
    command_line(["starter.py", *USAGES[len(text) % len(USAGES)](text)])


USAGES: Sequence[Callable[[str], list[str]]] = (
    lambda text: [text],
    lambda text: ["--" + text],
    lambda text: ["status", "o-1", text],
    lambda text: ["status", "o-1", "--" + text],
    lambda text: ["list", "--status", text],
    lambda text: ["list", "--limit", text],
    lambda text: ["start", "--customer", text, "--line", text],
    lambda text: ["start", "--customer", text, "--line", text + ":1"],
    lambda text: ["start", "--customer", "alice", "--line", "tea-mug:1", "--order-id", text],
    lambda text: ["cancel", text, "--reason", text],
    lambda text: ["cancel", "o-1", "--reason", "fine", "--" + text, text],
    lambda text: ["resolve", text, "--step", text, "--reason", "fine"],
    lambda text: ["load", "--from", text],
    lambda text: ["load", "--orders", "1", "--mix", text],
    lambda text: ["sweep", "--timeout", text],
    lambda text: ["audit", "--timeout=" + text],
)


def command_line(arguments: list[str]) -> None:
    """Run starter.py on it, with a Temporal behind that refuses everything in the same words."""
    text = max(arguments, key=len)

    def refuse(_work: Work) -> int:
        raise Refused(text) if len(text) % 2 else InvalidInput(text)

    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr(starter, "run", refuse)
        monkey.setattr(sys, "argv", arguments)
        starter.main()


def worker_log(text: str) -> None:
    record = logging.LogRecord(text, logging.ERROR, "", 0, "%s", (text,), None)
    record.exc_info = (ValueError, ValueError(text), None)
    record.order_id = record.action = text
    record.temporal_workflow = {"workflow_id": text}
    record.temporal_log = SimpleNamespace(fields={text: text})
    as_text, as_json = TextFormatter().format(record), JsonFormatter().format(record)
    assert len(as_text.splitlines()) == len(as_json.splitlines()) == 1
    assert_harmless(for_terminal(as_text), allowed="")
    assert_harmless(as_json, allowed="")
    assert text in json.loads(as_json)["message"]


def saga_log(text: str) -> None:
    event = SimpleNamespace(
        at="2026-11-28T00:00:00.000Z",
        order_id="o-1",
        seq=1,
        event=text,
        previous_status=text,
        status=text,
        changed_by=text,
        reason=text,
        batch_workflow_id=text,
        check_id=None,
        subject=None,
    )
    finding = SimpleNamespace(**{**vars(event), "check_id": "A1", "subject": text})
    for row in (event, finding):
        line = event_line(cast(Any, row))
        assert len(line.splitlines()) == 1
        assert not [found for found in outside.raw_controls(line, "") if found not in INVISIBLE]


def streams(text: str) -> None:
    out = io.StringIO()
    stream = CleanStream(out)
    print(text, file=stream)
    stream.writelines([text])
    stream.flush()
    assert_harmless(out.getvalue())


def temporal(text: str) -> None:
    """Look at what Temporal's UI is given: all of it is Markdown, and within a line."""
    status = CheckoutStatus(text, "stuck", text, steps=[StepView("pay", "stuck", text)])
    shown = (wording.details(status, ["pay"]), wording.batch_details([Outcome(text, "refused", text)] * 2))
    for line in "\n".join(shown).splitlines():
        kinds = {token.type for block in MARKDOWN.parse(line) for token in block.children or []}
        assert kinds <= {"text", "code_inline", "strong_open", "strong_close"}, line
    wanted = object.__new__(CheckoutInput)
    for name, value in {"order_id": text, "customer": text, "lines": (OrderLine(text, 1),) * 4}.items():
        object.__setattr__(wanted, name, value)
    for summary in (summaries.of_order(wanted), summaries.of_batch([wanted] * 2), summaries.goods(wanted)):
        assert len(summary) < 400
        assert_harmless(summary, allowed="")
        assert {token.type for block in MARKDOWN.parse(summary) for token in block.children or []} <= {
            "text",
            "code_inline",
        }, summary


WHOLE: Sequence[Callable[[str], None]] = (
    check_shown(order, lines=4),
    check_shown(listed, lines=3),
    check_shown(audit),
    check_shown(clean_audit),
    check_shown(sweep, lines=7),
    check_shown(load, lines=5),
    check_shown(bulk, lines=4),
    check_shown(error),
    check_shown(table),
    check_shown(usage),
    worker_log,
    saga_log,
    streams,
    temporal,
)


# Edges by name ---------------------------------------------------------------------------------------------------


def test_a_console_shows_markup_as_it_was_written() -> None:
    text = "[red]x[/red] [link=http://evil.test]y[/link] :warning:"
    out = io.StringIO()

    Terminal(file=out, force_terminal=True, width=200).print(text)

    assert out.getvalue() == f"{text}\n"


def test_what_was_typed_begins_no_line() -> None:
    with pytest.MonkeyPatch.context() as monkey:
        shown = shown_by(lambda: command_line(["starter.py", "status", "o-1", "--x\nError: none"]), monkey)

    assert [line for line in shown.splitlines() if line.startswith("Error: ")] == [shown.splitlines()[-1]]
