"""Faults that only strangers meet: their clusters, their settings, their first look at a history."""

from tests.mutants.killers import CONFIG, HEARTBEAT, SETUP, WORKER_HEALTH, WORKER_IMAGE, WORKER_START, at
from tests.mutants.mutant import Mutant

_CONFIG = "adapters/config.py"
_HEARTBEAT = "adapters/heartbeat.py"
_HEALTHY = at(WORKER_HEALTH, "test_a_worker_at_work_is_healthy_until_its_loop_is_blocked_or_it_ends")

MUTANTS = (
    Mutant(
        "a-setting-that-is-gone-is-any-unknown-one",
        "who upgrades would not learn why the fast lane is gone",
        "adapters/config.py",
        '    "CHECKOUT_EXECUTION_MODE": _NO_MODES,\n',
        "",
        at(CONFIG, "test_a_setting_that_is_gone_is_not_ignored[CHECKOUT_EXECUTION_MODE-local-first]"),
    ),
    Mutant(
        "service-links-are-settings",
        "nothing would start in a namespace with a service that is called checkout",
        _CONFIG,
        " and not _is_service_link(name, value)\n",
        "\n",
        (
            *at(CONFIG, "test_what_kubernetes_says_of_services_is_no_setting"),
            *at(WORKER_IMAGE, "test_the_image_checks_works_sells_and_ends_as_it_is"),
        ),
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
        "|{_INVISIBLE}\\Z",
        "",
        at(CONFIG, "test_invisible_characters_at_the_ends_of_a_setting_are_refused_and_shown"),
    ),
    Mutant(
        "the-middle-of-a-setting-is-not-looked-at",
        "a worker would poll a queue with a line end in its name, for ever and alone",
        _CONFIG,
        "_INVISIBLE_WITHIN.search(value) and not",
        "False and not",
        at(CONFIG, "test_a_control_character_within_a_setting_is_refused_and_shown"),
    ),
    Mutant(
        "a-setting-with-a-line-end-shows-its-secret",
        "the password would be in the log",
        _CONFIG,
        'return "" if _SECRET_NAME.search(name) or ',
        'return "" if ',
        at(CONFIG, "test_a_secret_with_a_control_character_is_named_and_not_shown"),
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
        "setup-opens-an-account-for-a-customer",
        "each upgrade would make money out of nothing",
        "setup.sql",
        "    ('shop', 'house', 'What customers have paid', NULL, NULL)\n",
        "    ('shop', 'house', 'What customers have paid', NULL, NULL),\n    ('mule', 'customer', 'M', 5, NULL)\n",
        at(SETUP, "test_it_sells_nothing_to_nobody"),
    ),
    Mutant(
        "heartbeat-of-an-earlier-worker-stays",
        "a worker that cannot start would be healthy for half a minute",
        "worker.py",
        "    forget_heartbeat(settings.heartbeat_file)\n",
        "",
        _HEALTHY,
        hangs=True,
    ),
    Mutant(
        "heartbeat-in-a-thread",
        "a worker whose loop is blocked would be healthy for ever",
        _HEARTBEAT,
        "        await asyncio.sleep(every_seconds)\n",
        "        await asyncio.to_thread(_beat_on, file, every_seconds)\n\n\n"
        "def _beat_on(file: Path, every_seconds: float) -> None:\n"
        "    while True:\n        time.sleep(every_seconds)\n        write(file)\n",
        _HEALTHY,
        hangs=True,
    ),
    Mutant(
        "heartbeat-without-work",
        "a worker that has stopped to take tasks would be healthy",
        _HEARTBEAT,
        "if file is not None and is_at_work():",
        "if file is not None:",
        at(HEARTBEAT, "test_a_beat_is_written_while_there_is_work_and_not_beyond"),
    ),
    Mutant(
        "heartbeat-never-ages",
        "the health check would be true of whoever has worked once",
        _HEARTBEAT,
        "if age > stale_seconds else",
        "if age > stale_seconds * 1e6 else",
        at(HEARTBEAT, "test_the_probe_distinguishes_young_from_old"),
    ),
    Mutant(
        "heartbeat-of-another-clock",
        "after a restart of the machine a stuck worker would be healthy for weeks",
        _HEARTBEAT,
        "    if age < 0:\n",
        "    if False:\n",
        at(HEARTBEAT, "test_what_is_no_heartbeat_of_today_is_unhealthy"),
    ),
)
