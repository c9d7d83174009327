"""The door to Temporal: the client, what it puts on the wire, and how malformed input is refused."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.converter import (
    AdvancedJSONEncoder,
    CompositePayloadConverter,
    DataConverter,
    DefaultPayloadConverter,
    JSONPlainPayloadConverter,
    JSONTypeConverter,
)
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import FailureError
from temporalio.runtime import Runtime
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import (
    ExecuteWorkflowInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

from adapters.config import DEFAULT_TEMPORAL_ADDRESS, ConfigurationError, SecretUnreadable, read_secret
from domain.errors import InvalidInput

ADVICE = (
    "Check TEMPORAL_API_KEY or CHECKOUT_TEMPORAL_API_KEY_FILE, TEMPORAL_TLS_* and TEMPORAL_NAMESPACE, and your rights "
    "there."
)
NOT_OURS_TO_ASK = frozenset({RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED})
"""How a server answers a call that these credentials, or this server, have no right or no way to make."""

_REFUSED = frozenset({RPCStatusCode.UNAUTHENTICATED, RPCStatusCode.PERMISSION_DENIED})
# The SDK tells a failed connect by its text alone: the server's status, or the alert of one side's TLS.
_REFUSED_IN_WORDS = (
    "Unauthenticated",
    "PermissionDenied",
    "InvalidCertificate",
    "invalid peer certificate",
    "AlertReceived",
    "fatal alert",
)

_PLACE = re.compile(r"TOML parse error at (line \d+, column \d+)")
# The loader's own words about the names of settings, with nothing of a value in them.
_BOTH = re.compile(r"Cannot specify both \w+ and \w+")
_CERTIFICATE_SETTING = re.compile(r"TEMPORAL_TLS_\w+_PATH")


def is_refused(error: Exception) -> bool:
    """Tell whether Temporal has answered, and refuses the credentials, rather than being away."""
    if isinstance(error, RPCError) and error.status in _REFUSED:
        return True
    return isinstance(error, (RPCError, RuntimeError)) and any(word in str(error) for word in _REFUSED_IN_WORDS)


class _WholeNumbers(JSONTypeConverter):
    """Refuses 1.5, true and "1" where a whole number is meant; the SDK would make each of them a 1."""

    def to_typed_value(self, hint: type[Any], value: Any) -> Any:
        if hint is int and type(value) is not int:
            raise TypeError(f"{value!r} is not a whole number")
        return JSONTypeConverter.Unhandled


class _Shallow(AdvancedJSONEncoder):
    """Writes dataclasses as the SDK does, without copying first all that is in them: a batch is hundreds of orders."""

    def default(self, o: Any) -> Any:
        if is_dataclass(o) and not isinstance(o, type):
            return {field.name: getattr(o, field.name) for field in fields(o)}
        return super().default(o)


# The SDK makes a converter for each activity and each activation; what it consists of has no state.
_ENCODINGS = tuple(
    JSONPlainPayloadConverter(encoder=_Shallow, custom_type_converters=[_WholeNumbers()])
    if isinstance(converter, JSONPlainPayloadConverter)
    else converter
    for converter in DefaultPayloadConverter.default_encoding_payload_converters
)


class CheckoutPayloadConverter(CompositePayloadConverter):
    """JSON, with one addition: a saga's input that does not decode is a refusal.

    The SDK would fail the workflow *task*, and the server would retry it until somebody terminates the
    workflow. Other values keep that behaviour on purpose: an activity result that this build cannot read
    is a bad deploy, and the saga waits for a good one.
    """

    def __init__(self) -> None:
        super().__init__(*_ENCODINGS)

    def from_payloads(self, payloads: Sequence[Payload], type_hints: list[type] | None = None) -> list[Any]:
        """Decode values; raise InvalidInput when a type that asks for it does not fit, or is far too long."""
        for payload, hint in zip(payloads, type_hints or (), strict=False):
            limit = getattr(hint, "max_payload_bytes", None)
            # Before decoding: tens of thousands of lines take longer than the 2 s that a workflow task may think.
            if limit is not None and len(payload.data) > limit:
                raise InvalidInput(f"the input has {len(payload.data)} bytes; a {hint.__name__} has {limit} at most")
        try:
            return super().from_payloads(payloads, type_hints)
        except FailureError:
            raise
        except Exception as error:
            wanted = [hint for hint in type_hints or () if getattr(hint, "refuse_malformed", False)]
            if not wanted:
                raise
            cause = error.__cause__ or error
            raise InvalidInput(f"the input is not a {wanted[0].__name__}: {str(cause).splitlines()[0][:300]}") from None


DATA_CONVERTER = replace(DataConverter.default, payload_converter_class=CheckoutPayloadConverter)


class RefuseWrongArguments(Interceptor):
    """Refuses a workflow that was started with no input, or with more values than it takes."""

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002, ARG002 - the SDK passes it by this name
    ) -> type[WorkflowInboundInterceptor]:
        """Name the class that wraps each workflow run."""
        return _RefuseWrongArguments


class _RefuseWrongArguments(WorkflowInboundInterceptor):
    async def execute_workflow(
        self,
        input: ExecuteWorkflowInput,  # noqa: A002 - the SDK passes it by this name
    ) -> Any:
        takes = _parameter_count(input.run_fn)
        if len(input.args) != takes:
            raise InvalidInput(f"{input.type.__name__} takes {takes} input value, not {len(input.args)}")
        if None in input.args:
            raise InvalidInput(f"{input.type.__name__} needs an input value; null is none")
        return await super().execute_workflow(input)


def _parameter_count(run: Callable[..., Any]) -> int:
    return run.__code__.co_argcount - 1  # without self


def connection_options(api_key_file: Path | None = None) -> dict[str, Any]:
    """Read `TEMPORAL_*` and temporal.toml the way every Temporal tool does, with our default address.

    Certificates, and the API key where it is in a file, are read by each call.

    Raises:
        ConfigurationError: the profile, a certificate or the key's file cannot be used. Nothing secret is told.
    """
    options: dict[str, Any] = {"target_host": DEFAULT_TEMPORAL_ADDRESS, "namespace": "default"}
    options.update(load_profile())
    if api_key_file is not None:
        options["api_key"] = _api_key_in(api_key_file)
        options.setdefault("tls", True)  # as the SDK does for a key in the environment
    return options


def load_profile() -> dict[str, Any]:
    """Give the SDK's arguments for a connection. Certificates are read by each call.

    Raises:
        ConfigurationError: a profile is not there, the file is malformed, or a certificate cannot be read. Nothing of
            the file or of a secret's value is told.
    """
    try:
        return dict(
            ClientConfig.load_client_connect_config(config_file_strict=True, override_env_vars=dict(os.environ))
        )
    except OSError as error:
        problem = _unreadable(error)
    except Exception as error:  # noqa: BLE001 - the loader has a class of its own, which the SDK does not export
        problem = _told(str(error))
    # Outside of the handlers: the loader's error would be this one's context, with the file's line in it.
    raise ConfigurationError(problem)


def _unreadable(error: OSError) -> str:
    named = sorted(
        name for name, value in os.environ.items() if _CERTIFICATE_SETTING.fullmatch(name) and value == error.filename
    )
    what = ", ".join(named) or "a file that the profile in TEMPORAL_CONFIG_FILE or temporal.toml names"
    return f"{what} cannot be read: {error.strerror or type(error).__name__}"


def _told(said: str) -> str:
    profile = os.environ.get("TEMPORAL_PROFILE", "default")
    if said == f"Profile '{profile}' not found":
        return f"TEMPORAL_PROFILE: there is no profile {profile!a} in the file that TEMPORAL_CONFIG_FILE names"
    if found := _BOTH.search(said):
        return f"TEMPORAL_TLS_* or the profile in TEMPORAL_CONFIG_FILE: {found[0]}"
    where = f"look at {found[1]}" if (found := _PLACE.search(said)) else "look at its encoding and its rights"
    return (
        "the file that TEMPORAL_CONFIG_FILE names, or temporal.toml, is not what Temporal's environment configuration "
        f"expects: {where} (the file may hold secrets and is not shown)"
    )


def _api_key_in(file: Path) -> str:
    problem, key = "", ""
    try:
        key = read_secret("CHECKOUT_TEMPORAL_API_KEY_FILE", file).strip()
    except SecretUnreadable as error:
        problem = str(error)
    if key and not (key.isascii() and key.isprintable()):  # it becomes a header
        problem = "CHECKOUT_TEMPORAL_API_KEY_FILE has a character that no API key has"
    if problem or not key:
        raise ConfigurationError(problem or "CHECKOUT_TEMPORAL_API_KEY_FILE has no API key in it")
    return key


def place(options: dict[str, Any]) -> str:
    """Say where Temporal is, without what stands before an @ there: somebody may have put a password into it."""
    before, at, after = str(options["target_host"]).rpartition("@")
    return f"...@{after}" if at else before + after


async def connect(
    *, runtime: Runtime | None = None, identity: str | None = None, api_key_file: Path | None = None
) -> Client:
    """Connect to Temporal.

    Raises:
        ConfigurationError: the address is none.
        RuntimeError: nobody answers at the address.
    """
    options = connection_options(api_key_file)
    if identity:
        options["identity"] = identity
    try:
        return await Client.connect(**options, data_converter=DATA_CONVERTER, runtime=runtime)
    except ValueError as error:
        if "cert" in str(error):
            raise ConfigurationError(f"TEMPORAL_TLS_*: {error}") from error
        raise ConfigurationError(f"TEMPORAL_ADDRESS: {place(options)!r} is not as 127.0.0.1:7233: {error}") from error
