"""Faults in what Temporal knows a worker by, in what it is told when that is refused, and in who an operator is."""

from tests.mutants.killers import CREDENTIALS, CREDENTIALS_REFUSED, STARTER_ORDERS, at
from tests.mutants.mutant import Mutant

_FOLLOWING = "adapters/temporal_credentials.py"
_STARTER = "starter.py"
_KEY = "test_a_worker_takes_a_new_api_key_from_its_file_and_goes_on"
_CERTIFICATES = "test_a_worker_takes_new_certificates_from_their_files_and_goes_on"
_WHO = "test_the_log_reports_who_retried_and_resolved_and_why"

MUTANTS = (
    Mutant(
        "credentials-new-key-is-ignored",
        "a worker whose API key is replaced would need a restart",
        _FOLLOWING,
        '            client.api_key = options.get("api_key")\n',
        "",
        at(CREDENTIALS, _KEY),
        hangs=True,
    ),
    Mutant(
        "credentials-key-file-loses",
        "the key of the environment, which cannot be replaced, would win over the one of the file",
        "adapters/temporal.py",
        '        options["api_key"] = _api_key_in(api_key_file)\n',
        '        options.setdefault("api_key", _api_key_in(api_key_file))\n',
        at(CREDENTIALS, _KEY),
    ),
    Mutant(
        "credentials-new-certificates-are-ignored",
        "a worker whose certificates are replaced would need a restart",
        _FOLLOWING,
        '        if options.get("tls") != used.tls:\n',
        "        if False:\n",
        at(CREDENTIALS, _CERTIFICATES),
        hangs=True,
    ),
    Mutant(
        "credentials-companion-keeps-the-old",
        "audits would use a connection that Temporal refuses",
        "adapters/worker_run.py",
        "            plugin.use_client(client)\n",
        "            pass\n",
        at(CREDENTIALS, _CERTIFICATES),
        hangs=True,
    ),
    Mutant(
        "credentials-refusal-is-not-logged",
        "a worker's log would not say why it does nothing",
        _FOLLOWING,
        "    if refusal:\n        _log.error(",
        "    if refusal:\n        _log.debug(",
        at(CREDENTIALS, _KEY),
        hangs=True,
    ),
    Mutant(
        "credentials-refused-at-start-are-waited-for",
        "a worker with a wrong key would report that Temporal is away",
        "adapters/readiness.py",
        "    if is_refused(error):\n        return True\n",
        "",
        at(CREDENTIALS_REFUSED, "test_a_worker_whose_api_key_is_refused_at_start_says_so"),
        hangs=True,
    ),
    Mutant(
        "worker-outlives-its-failure",
        "a worker that the SDK has given up would neither work nor end",
        "worker.py",
        "= {stopped, follower, locked_out, failure.known}\n",
        "= {stopped, follower, locked_out}\n",
        at(CREDENTIALS_REFUSED, "test_a_worker_that_is_refused_for_longer_than_the_sdk_waits_says_so_and_ends"),
        hangs=True,
    ),
    Mutant(
        "worker-follows-no-credentials",
        "nothing would read the credentials' files",
        "worker.py",
        "                temporal_credentials.follow(worker, use_client, settings.temporal_api_key_file)\n",
        "                asyncio.sleep(0)\n",
        at(CREDENTIALS_REFUSED, "test_a_worker_process_takes_a_new_key_and_goes_on"),
        hangs=True,
    ),
    Mutant(
        "start-without-an-answer-is-told-as-unreachable",
        "whoever repeats it would buy twice",
        _STARTER,
        "            starting(order.order_id),\n",
        "",
        at(STARTER_ORDERS, "test_a_start_without_an_answer_reports_the_id_that_a_repeat_needs"),
    ),
    Mutant(
        "start-keeps-its-id-to-itself",
        "a start that is cut off could not be repeated under its id",
        _STARTER,
        "        if order_id is None and not as_json:",
        "        if False:",
        at(STARTER_ORDERS, "test_an_id_that_was_made_up_is_reported_before_it_is_sent_and_one_that_was_given_is_not"),
    ),
    Mutant(
        "retry-drops-its-reason",
        "the order's log would not tell why its review was lifted",
        "client/checkouts.py",
        "RetryRequest(by, reason)",
        "RetryRequest(by)",
        at(STARTER_ORDERS, _WHO),
    ),
    Mutant(
        "resolve-forgets-who",
        "the order's log would not tell who vouches for a refund by hand",
        "workflows/checkout_stuck.py",
        "who_and_why(resolution.by, resolution.reason)",
        "resolution.reason",
        at(STARTER_ORDERS, _WHO),
    ),
)
