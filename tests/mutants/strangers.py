"""Faults that only strangers meet: their clusters, their settings, their first look at a history."""

from tests.mutants.killers import CONFIG, PROJECT, SETUP, WORKER_START, at
from tests.mutants.mutant import Mutant

_CONFIG = "adapters/config.py"

MUTANTS = (
    Mutant(
        "an-order-is-fast-by-default",
        "who opens a history would see three bare points",
        "domain/policies.py",
        "LANE = Lane.CLASSIC",
        "LANE = Lane.FAST",
        at(CONFIG, "test_an_order_on_its_own_is_classic_unless_the_settings_say_otherwise"),
    ),
    Mutant(
        "service-links-are-settings",
        "nothing would start in a namespace with a service that is called checkout",
        _CONFIG,
        " and not _is_service_link(name, value)\n",
        "\n",
        at(CONFIG, "test_what_kubernetes_says_of_services_is_no_setting"),
    ),
    Mutant(
        "whatever-ends-in-port-is-passed-over",
        "a typo would be a setting that nobody reads",
        _CONFIG,
        "?PORT=(tcp|udp|sctp)://.*",
        "?PORT=.*",
        at(CONFIG, "test_what_only_looks_like_it_is_refused"),
    ),
    Mutant(
        "the-end-of-a-setting-is-not-looked-at",
        "a worker would poll a queue whose name ends in a line end, for ever and alone",
        _CONFIG,
        "|{_UNSEEN}\\Z",
        "",
        at(CONFIG, "test_what_nobody_sees_at_the_ends_of_a_setting_is_refused_and_shown"),
    ),
    Mutant(
        "a-setting-with-a-line-end-shows-its-secret",
        "the password would be in the log",
        _CONFIG,
        'return "" if _SECRET_NAME.search(name) or ',
        'return "" if ',
        at(CONFIG, "test_a_secret_with_something_at_its_end_is_named_and_not_shown"),
    ),
    Mutant(
        "sigterm-waits-for-the-imports",
        "a container that is stopped in its first second would be killed when its time is up",
        "worker.py",
        "    signal.signal(signal.SIGTERM, lambda",
        "    (lambda *_: None)(signal.SIGTERM, lambda",
        at(WORKER_START, "test_a_worker_takes_sigterm_before_it_has_imported_anything"),
    ),
    Mutant(
        "a-check-that-is-stopped-is-a-success",
        "an init container that was stopped would let the worker start",
        "worker.py",
        "os._exit(len(sys.argv) > 1)",
        "os._exit(0)",
        at(WORKER_START, "test_a_worker_takes_sigterm_before_it_has_imported_anything[checks]"),
    ),
    Mutant(
        "another-release-is-told",
        "a report would name a release that it is not about",
        "domain/version.py",
        'RELEASE = "checkout-saga 0.1.0"',
        'RELEASE = "checkout-saga 0.0.9"',
        at(PROJECT, "test_every_command_tells_the_release_that_pyproject_names"),
    ),
    Mutant(
        "setup-opens-an-account-for-a-customer",
        "each upgrade would make money out of nothing",
        "setup.sql",
        "    ('shop', 'house', 'What customers have paid', NULL, NULL)\n",
        "    ('shop', 'house', 'What customers have paid', NULL, NULL),\n    ('mule', 'customer', 'M', 5, NULL)\n",
        at(SETUP, "test_it_sells_nothing_to_nobody"),
    ),
)
