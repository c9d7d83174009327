"""The HTTP API: places orders, shows them, and takes what operators ask. Run as many as you like.

    python api.py               run
    python api.py --openapi     print the description of the API
    python api.py --version     print the release

Settings come from the environment: `TEMPORAL_*` as for every Temporal tool, ours as `CHECKOUT_*` (see
adapters/config.py). It changes things through Temporal alone, and reads orders from Postgres as `checkout_reader`.
`python -m http_api.keys` makes the keys of those who may call it.

It starts with Temporal or Postgres away, and does what can be done without them. SIGTERM or Ctrl-C ends it: requests
are answered, streams end.
Exit status: 0 stopped; 1 it cannot listen, or its role in Postgres may write; 2 the configuration or the usage is
wrong.
"""

import os
import signal

if __name__ == "__main__":
    # Before the imports, see worker.py: nothing has started yet.
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))

import asyncio
import logging
import socket
from typing import Any

from adapters import temporal_credentials
from adapters.config import ApiSettings, ConfigurationError
from adapters.database import Access, create_reader_engine
from adapters.process_exit import leave
from adapters.program import CannotRun, run_program
from adapters.streams import clean_streams
from adapters.temporal import connect
from client.batcher import Batcher, BatchPolicy
from domain.text import json_text
from http_api.app import build_app, build_door, describe
from http_api.keys import KeyFile, KeysUnusable
from http_api.oidc import OpenIdProvider
from http_api.rates import Rates
from http_api.reads import Reads
from http_api.server import Server, allow_connections
from http_api.services import Services
from http_api.tail import Tail
from http_api.temporal import Temporal
from sagafence import SagaError

_log = logging.getLogger("checkout.api")

_ASK_AGAIN_SECONDS = 2.0


async def run(settings: ApiSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        CannotRun: it cannot listen, or its role may write.
        ConfigurationError: the settings do not say where Temporal is, or half of what a provider needs.
    """
    allow_connections()
    engine = create_reader_engine(
        settings.database_url.get_secret_value(),
        **Access(url_file=settings.database_url_file, password_file=settings.database_password_file),
    )
    try:
        services = await build_services(settings, Reads(engine))
        server = Server(build_door(services), services, host=settings.api_host, port=settings.api_port)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, setattr, server, "should_exit", True)
        listening = _listen(settings)
        watches = [
            asyncio.create_task(
                temporal_credentials.follow(services.temporal, Temporal.use, settings.temporal_api_key_file)
            ),
            asyncio.create_task(_require_reader(services.reads)),
        ]
        serving = asyncio.create_task(server.serve([listening]))
        host, port = listening.getsockname()[:2]
        _log.info("ready: http://%s:%s", f"[{host}]" if ":" in host else host, port, extra={"action": "api_ready"})
        try:
            await asyncio.wait({serving, watches[1]}, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await serving
            if watches[1].done():
                watches[1].result()
        finally:
            for watch in watches:
                watch.cancel()
    finally:
        await engine.dispose()
    _log.info("stopped", extra={"action": "api_stopped"})


async def build_services(settings: ApiSettings, reads: Reads) -> Services:
    """Make the parts that the routes work with. Nothing is connected yet.

    Raises:
        ConfigurationError: as for `run`.
    """
    if (settings.api_oidc_issuer is None) != (settings.api_oidc_audience is None):
        raise ConfigurationError("CHECKOUT_API_OIDC_ISSUER and CHECKOUT_API_OIDC_AUDIENCE: set both, or neither")
    oidc = None
    if settings.api_oidc_issuer and settings.api_oidc_audience:
        oidc = OpenIdProvider(settings.api_oidc_issuer, settings.api_oidc_audience)
    keys = KeyFile(settings.api_keys_file)
    try:
        if not keys.all() and oidc is None:
            _log.warning("nobody may call this API yet: python -m http_api.keys create makes a key")
    except KeysUnusable as error:
        raise ConfigurationError(f"CHECKOUT_API_KEYS_FILE: {error}") from None
    identity = f"checkout-api@{socket.gethostname()}-{os.getpid()}"
    client = await connect(identity=identity, api_key_file=settings.temporal_api_key_file, is_lazy=True)
    temporal = Temporal(client, settings.task_queue, settings.ui_url)
    most = settings.api_orders_together
    return Services(
        reads=reads,
        tail=Tail(reads),
        temporal=temporal,
        keys=keys,
        oidc=oidc,
        rates=Rates(settings.api_requests_per_second),
        batcher=Batcher(lambda: temporal.checkouts, BatchPolicy(most=most)) if most > 1 else None,
    )


def _listen(settings: ApiSettings) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.api_host, settings.api_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        # A name that is not known has another kind of number; the text of the others names the address again.
        why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise CannotRun(
            f"The API cannot listen on {settings.api_host}:{settings.api_port}: {why}.\n"
            "Set CHECKOUT_API_HOST to an address of this machine and CHECKOUT_API_PORT to a free port."
        ) from None


async def _require_reader(reads: Reads) -> None:
    """Return never, unless our role may write: a fault in here could then change an order.

    Raises:
        CannotRun: it may.
    """
    is_known = False
    while not is_known:
        try:
            if writer := await reads.writer():
                raise CannotRun(
                    f"The API logs into Postgres as {writer}, which may write.\n"
                    "Set CHECKOUT_DATABASE_URL to one with the role checkout_reader."
                )
            is_known = True
        except SagaError as error:
            _log.warning("Postgres does not answer yet: %s", error, extra={"action": "waiting"})
            await asyncio.sleep(_ASK_AGAIN_SECONDS)
    await asyncio.Event().wait()


def description() -> dict[str, Any]:
    """Return the OpenAPI description, for which nothing has to run."""
    nothing: Any = None
    return describe(build_app(Services(nothing, Tail(nothing), nothing, nothing, None, Rates(1))))


def main() -> int:
    """Run the API and return the exit status."""
    return run_program(__doc__, ApiSettings, {"": run}, {"--openapi": lambda: json_text(description(), indent=2)})


if __name__ == "__main__":
    clean_streams()
    leave(main())
