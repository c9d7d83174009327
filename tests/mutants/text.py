"""Faults in what is shown of outside text: nothing acts at an edge, nothing hides, nothing makes a line of its own."""

from tests.mutants.killers import LOG_FORMAT, TEXT, UI_TEXT, at
from tests.mutants.mutant import Mutant

_TEXT = "domain/text.py"
_FUZZ = at(TEXT, "test_no_text_from_outside_acts_at_an_edge")

MUTANTS = (
    Mutant(
        "text-lets-invisible-characters-through",
        "two ids that differ would look the same",
        _TEXT,
        "    if text.isprintable() and not _INVISIBLE.search(text):\n",
        "    if text.isprintable():\n",
        at(TEXT, "test_what_may_not_be_shown_is_seen_as_an_escape") + _FUZZ,
    ),
    Mutant(
        "text-lets-controls-through",
        "an order's id could write to the clipboard of an operator who lists it",
        _TEXT,
        "    return char if char.isprintable() and not _INVISIBLE.match(char) else _escape(char)\n",
        "    return char if not _INVISIBLE.match(char) else _escape(char)\n",
        _FUZZ,
    ),
    Mutant(
        "value-may-begin-a-line",
        "a reason could show a second order that does not exist",
        _TEXT,
        '    return for_terminal(text).replace("\\n", "\\\\n")\n',
        "    return for_terminal(text)\n",
        _FUZZ,
    ),
    Mutant(
        "log-line-may-turn-its-direction",
        "a reason could show the line of saga.log backwards",
        _TEXT,
        '_MOVES_OR_HIDES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})\n',
        '_MOVES_OR_HIDES = frozenset({"Cc", "Cs", "Zl", "Zp"})\n',
        _FUZZ,
    ),
    Mutant(
        "saga-log-as-written",
        "a reason with a line end would write an event into saga.log that never was",
        "adapters/event_log.py",
        '    return for_log_line(f"{row.at} {in_line(row.order_id)}',
        '    return str(f"{row.at} {in_line(row.order_id)}',
        _FUZZ,
    ),
    Mutant(
        "console-reads-markup",
        "an id could colour, or hide, what is shown beside it",
        "adapters/terminal.py",
        "super().__init__(highlight=False, markup=False, emoji=False, **options)",
        "super().__init__(highlight=False, emoji=False, **options)",
        at(TEXT, "test_a_console_shows_markup_as_it_was_written"),
    ),
    Mutant(
        "console-lets-controls-through",
        "what an error quotes would act on the terminal",
        "adapters/terminal.py",
        "            yield segment if control else Segment(for_terminal(text), style)\n",
        "            yield segment if control else Segment(text, style)\n",
        _FUZZ,
    ),
    Mutant(
        "stream-lets-controls-through",
        "a traceback would act on the terminal",
        "adapters/streams.py",
        "        self.raw_stream.write(for_terminal(text))\n",
        "        self.raw_stream.write(text)\n",
        _FUZZ,
    ),
    Mutant(
        "summary-with-a-picture",
        "Temporal's UI would load a picture from wherever a buyer says",
        _TEXT,
        "    return for_markdown(shown if",
        "    return (shown if",
        _FUZZ,
    ),
    Mutant(
        "details-with-a-link",
        "Temporal's UI would lead an operator to wherever whoever cancels says",
        "workflows/wording.py",
        '(f": {for_markdown(status.reason)}" if status.reason else "")',
        '(f": {status.reason}" if status.reason else "")',
        at(UI_TEXT, "test_a_reason_that_somebody_gave_is_text_in_the_details"),
    ),
    Mutant(
        "code-that-ends-early",
        "what follows a backquote in a value would be Markdown again",
        _TEXT,
        '    fence = "`" * (longest + 1)\n',
        '    fence = "`"\n',
        at(TEXT, "test_markdown_shows_what_is_active_as_code") + _FUZZ,
    ),
    Mutant(
        "address-becomes-a-link",
        "a bare address in a reason would be a link in Temporal's UI",
        _TEXT,
        "    | (?:https?|ftps?|file):// | (?:mailto|xmpp): | www\\.  # an address\n",
        "",
        at(UI_TEXT, "test_no_text_from_outside_becomes_a_link_or_a_picture"),
    ),
    Mutant(
        "log-with-a-traceback-of-many-lines",
        "a program that reads the worker's log line by line would take a traceback for records",
        "adapters/log_setup.py",
        "        return for_log_line(f\"{_time(record)} {record.levelname:<7} {record.name}: {' | '.join(parts)}\")\n",
        '        return f"{_time(record)} {record.levelname:<7} {record.name}: " + "\\n".join(parts)\n',
        at(LOG_FORMAT, "test_a_record_is_one_line_of_text"),
    ),
    Mutant(
        "json-log-without-its-order",
        "the records of an order could not be found",
        "adapters/log_setup.py",
        '"order_id": getattr(record, "order_id", None) or _order_id(workflow_id),',
        '"order_id": getattr(record, "order_id", None),',
        at(LOG_FORMAT, "test_a_record_says_whose_order_it_is_about"),
    ),
)
