"""Faults in how a worker gets its sessions: which host, which password, which settings, and through what pooler."""

from tests.mutants.killers import SESSIONS, at
from tests.mutants.mutant import Mutant

_CONNECTOR = "adapters/connector.py"
_POOLING = "adapters/pooling.py"
_LENT_OUT = "test_a_worker_refuses_by_name_a_pooler_that_lends_sessions_out"
_KEPT = "test_every_engine_works_through_a_pooler_in_session_mode_with_its_own_limits"
_ROTATED = "test_a_rotated_password_is_an_outage_until_its_file_has_the_new_one"
_READ_ONLY = "test_no_engine_takes_a_session_that_only_reads_and_each_finds_the_writer_by_itself"

MUTANTS = (
    Mutant(
        "session-may-be-read-only",
        "after a failover a worker would hold sessions of the old primary, and every step would fail",
        _CONNECTOR,
        'f"{_REQUIRE_WRITABLE};{self._statements(connection)}"',
        'f"SELECT 1;{self._statements(connection)}"',
        at(SESSIONS, _READ_ONLY),
    ),
    Mutant(
        "session-reported-read-only-is-kept",
        "a primary that becomes a standby would cost an attempt for each session of the pool",
        _CONNECTOR,
        '    return "on" in (',
        '    return "never" in (',
        at(SESSIONS, "test_a_session_that_reports_to_be_read_only_is_left_before_it_fails"),
    ),
    Mutant(
        "session-dead-host-uses-up-the-time",
        "a silent first host would leave the second, which works, no time",
        _CONNECTOR,
        "share = (deadline - time.monotonic()) / (len(hosts) - number)",
        "share = deadline - time.monotonic()",
        at(SESSIONS, "test_a_dead_first_host_leaves_time_for_the_second"),
    ),
    Mutant(
        "session-host-that-answered-is-forgotten",
        "each new session would wait for the dead host first",
        _CONNECTOR,
        "                self._preferred = host\n",
        "",
        at(SESSIONS, "test_the_host_that_answered_last_comes_first"),
    ),
    Mutant(
        "session-one-host-is-told",
        "an operator would read of one host alone why there is no session",
        _CONNECTOR,
        '"; ".join(f"{host}: {words}" if len(said) > 1 else words for host, words in said.items())',
        "str(telling)",
        at(SESSIONS, "test_when_no_host_gives_a_session_each_is_told"),
    ),
    Mutant(
        "session-password-file-keeps-its-line-end",
        "a password that an editor wrote would be a wrong one",
        "adapters/secret_file.py",
        '.rstrip("\\r\\n")',
        "",
        at(SESSIONS, _ROTATED),
    ),
    Mutant(
        "session-password-of-the-url-wins",
        "a password that is rotated in its file would need a restart",
        _CONNECTOR,
        "        if self._password_file is None:\n            return",
        "        if self._destination.password:\n            return",
        at(SESSIONS, _ROTATED),
    ),
    Mutant(
        "session-empty-password-file-is-no-password",
        "a file that is being replaced would be told as a wrong password",
        "adapters/secret_file.py",
        "        if content and not _has_control_character(content):\n",
        "        if not _has_control_character(content):\n",
        at(SESSIONS, "test_a_password_file_that_is_being_replaced_is_an_outage"),
    ),
    Mutant(
        "session-refusal-is-not-counted",
        "a worker that is let in no more would wait for ever without a word",
        _CONNECTOR,
        "                self.admission.refuse(str(failure))\n",
        "                self.admission.interrupt()\n",
        at(SESSIONS, "test_a_login_that_is_refused_is_an_outage_and_known_to_be_a_refusal"),
    ),
    Mutant(
        "session-silence-is-a-refusal",
        "a worker would end because Postgres restarts",
        _CONNECTOR,
        "            if failure.is_refusal:\n                self",
        "            if True:\n                self",
        at(SESSIONS, "test_a_server_that_is_away_is_no_refusal"),
    ),
    Mutant(
        "session-settings-are-startup-parameters",
        "PgBouncer would refuse every session",
        _CONNECTOR,
        '            server_settings={"application_name": destination.application_name}\n',
        '            server_settings={"application_name": destination.application_name, **self._settings}\n',
        at(SESSIONS, _KEPT),
    ),
    Mutant(
        "session-limits-are-not-set",
        "the sweep's and the audit's statements would be ended by the limit of the steps",
        _CONNECTOR,
        'f"{_REQUIRE_WRITABLE};{self._statements(connection)}"',
        "_REQUIRE_WRITABLE",
        at(SESSIONS, _KEPT),
    ),
    Mutant(
        "session-tls-is-left-out",
        "a connection that was to be encrypted would be made in the clear",
        _CONNECTOR,
        "            **_tls(destination),\n",
        "",
        at(SESSIONS, "test_a_certificate_that_is_asked_for_is_not_done_without"),
    ),
    Mutant(
        "pooler-that-lends-is-trusted",
        "a pooler in transaction mode would lose prepared statements, settings and locks under way",
        _POOLING,
        "                        return Pooling.TRANSACTION\n        except",
        "                        return Pooling.SESSION\n        except",
        at(SESSIONS, _LENT_OUT),
    ),
    Mutant(
        "pooler-in-statement-mode-is-an-outage",
        "a worker would wait for what never passes",
        _POOLING,
        "            if _STATEMENT_POOLING in str(error):\n",
        "            if False:\n",
        at(SESSIONS, _LENT_OUT),
    ),
    Mutant(
        "pooler-is-seen-everywhere",
        "without a pooler a worker would refuse to start, or look for one at each start",
        _POOLING,
        "            if own == first.get_server_pid():\n",
        "            if False:\n",
        at(SESSIONS, "test_without_a_pooler_nobody_is_suspected"),
    ),
)
