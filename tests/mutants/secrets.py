"""Faults that show a secret, or do not take a new one."""

from tests.mutants.killers import SECRETS, SESSIONS, at
from tests.mutants.mutant import Mutant

_CONFIG = "adapters/config.py"
_PROFILE = "adapters/temporal.py"
_FILE = "adapters/config.py"
_URL = "adapters/database_url.py"
_MALFORMED = at(SECRETS, "test_a_malformed_profile_is_reported_without_its_content")
_ODD = at(SECRETS, "test_no_part_of_a_password_with_odd_characters_is_shown")

MUTANTS = (
    Mutant(
        "secrets-the-loaders-message-is-shown",
        "a malformed temporal.toml would put the line with the API key into the log",
        _PROFILE,
        "        problem = _profile_problem(str(error))\n",
        "        problem = str(error)\n",
        _MALFORMED,
    ),
    Mutant(
        "secrets-the-loaders-error-is-the-context",
        "whatever prints a whole chain of errors would show the line with the API key",
        _PROFILE,
        "        problem = _profile_problem(str(error))\n",
        "        raise ConfigurationError(_profile_problem(str(error))) from error\n",
        _MALFORMED,
    ),
    Mutant(
        "secrets-a-certificates-path-is-shown",
        "a key in place of its path would be in the log",
        _PROFILE,
        "{error.strerror or type(error).__name__}",
        "{error}",
        at(SECRETS, "test_an_unreadable_certificate_is_reported_by_its_setting"),
    ),
    Mutant(
        "secrets-the-path-of-a-file-is-shown",
        "a password in place of its file would be in the log",
        _FILE,
        "error.strerror or type(error).__name__",
        "str(error)",
        at(SECRETS, "test_a_secrets_file_that_cannot_be_used_is_reported_by_its_setting_alone"),
    ),
    Mutant(
        "secrets-what-was-read-is-the-context",
        "a decoder's error has all of the file in it",
        _FILE,
        '        problem = "it is not UTF-8"\n',
        '        raise SecretUnreadable(f"{setting} cannot be read: it is not UTF-8") from None\n',
        at(SECRETS, "test_a_secrets_file_that_cannot_be_used_is_reported_by_its_setting_alone"),
    ),
    Mutant(
        "secrets-an-at-in-a-password-is-a-host",
        "the end of a password would be taken for a database or a host, and shown",
        _URL,
        'if url.count("@") > 1 or (',
        "if (",
        _ODD,
    ),
    Mutant(
        "secrets-a-question-mark-in-a-password-is-a-parameter",
        "the end of a password would be shown as an unknown parameter",
        _URL,
        """ or ("@" in (found["query"] or "") and not _USER_WITH_AN_AT.search(url)):""",
        ":",
        _ODD,
    ),
    Mutant(
        "secrets-a-link-carries-credentials",
        "every line that names a history would show the password of the page",
        _CONFIG,
        "    if _CREDENTIALS_IN_A_URL.search(url):\n        raise",
        "    if False:\n        raise",
        at(SECRETS, "test_a_wrong_setting_shows_no_secret"),
    ),
    Mutant(
        "secrets-a-validation-shows-its-input",
        "settings made in code would show what they were made of",
        _CONFIG,
        ", hide_input_in_errors=True",
        "",
        at(SECRETS, "test_settings_that_are_made_in_code_show_no_wrong_value"),
    ),
    Mutant(
        "secrets-an-address-is-shown-whole",
        "a password in front of the host would be logged with every outage",
        "adapters/temporal.py",
        'return f"...@{after}" if at else before + after',
        "return before + at + after",
        at(SECRETS, "test_the_address_of_temporal_is_shown_without_what_comes_before_an_at"),
    ),
    Mutant(
        "secrets-a-url-file-is-read-once",
        "a rotated password would need a restart",
        "adapters/connector.py",
        "        destination = self._destination = self._read_destination()\n",
        "        destination = self._destination = self._read_destination()\n        self._url_file = None\n",
        at(SESSIONS, "test_rotated_credentials_are_an_outage_until_their_file_has_the_new_ones"),
    ),
    Mutant(
        "secrets-the-url-of-a-file-wins-over-a-password",
        "with both mounted the older one would be refused",
        "adapters/connector.py",
        "        if self._password_file is None:\n",
        "        if self._password_file is None or self._url_file is not None:\n",
        at(SESSIONS, "test_the_password_of_a_file_wins_over_the_url_of_another"),
    ),
)
