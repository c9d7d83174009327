"""Temporal: the connection and its settings, the payload converter, and the refusal of malformed input."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, DescribeTaskQueueResponse
from temporalio.client import Client
from temporalio.converter import (
    AdvancedJSONEncoder,
    CompositePayloadConverter,
    DataConverter,
    DefaultPayloadConverter,
    JSONPlainPayloadConverter,
    JSONTypeConverter,
    value_to_type,
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
from sagafence import InvalidInput

ADVICE = (
    "Check TEMPORAL_API_KEY or CHECKOUT_TEMPORAL_API_KEY_FILE, TEMPORAL_TLS_* and TEMPORAL_NAMESPACE, and your rights "
    "there."
)
NOT_OURS_TO_ASK = frozenset({RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED})
"""How a server answers a call that these credentials may not make, or that it does not have."""

_REFUSED = frozenset({RPCStatusCode.UNAUTHENTICATED, RPCStatusCode.PERMISSION_DENIED})
# The SDK reports a failed connect as text alone: the server's status, or the alert of one side's TLS.
_REFUSED_TEXTS = (
    "Unauthenticated",
    "PermissionDenied",
    "InvalidCertificate",
    "invalid peer certificate",
    "AlertReceived",
    "fatal alert",
)
_ADDRESS = re.compile(r"(https?://)?(\[[0-9A-Fa-f:.]+\]|[^\s/:]+):\d{1,5}")
_POSITION = re.compile(r"TOML parse error at (line \d+, column \d+)")
# The loader's text on the names of settings; it has no value in it.
_BOTH = re.compile(r"Cannot specify both \w+ and \w+")
_CERTIFICATE_SETTING = re.compile(r"TEMPORAL_TLS_\w+_PATH")


def is_refused(error: Exception) -> bool:
    """Return whether Temporal answers and refuses the credentials."""
    if isinstance(error, RPCError) and error.status in _REFUSED:
        return True
    return isinstance(error, (RPCError, RuntimeError)) and any(text in str(error) for text in _REFUSED_TEXTS)


class _WholeNumbers(JSONTypeConverter):
    """Refuses 1.5, true and "1" for a whole number; the SDK would make each of them a 1."""

    def to_typed_value(self, hint: type[Any], value: Any) -> Any:
        if hint is int and type(value) is not int:
            raise TypeError(f"{value!r} is not a whole number")
        return JSONTypeConverter.Unhandled


class _EarlierNames(JSONTypeConverter):
    """Reads fields under the names that earlier builds wrote: those in a type's `earlier_names`."""

    def to_typed_value(self, hint: type[Any], value: Any) -> Any:
        if not isinstance(value, dict):
            return JSONTypeConverter.Unhandled
        names = getattr(hint, "earlier_names", {})
        if names.keys().isdisjoint(value):
            return JSONTypeConverter.Unhandled
        return value_to_type(hint, {names.get(name, name): each for name, each in value.items()}, _CONVERTERS)


_CONVERTERS = (_WholeNumbers(), _EarlierNames())


class _Shallow(AdvancedJSONEncoder):
    """Encodes dataclasses as the SDK does, without its deep copy first: a batch is hundreds of orders."""

    def default(self, o: Any) -> Any:
        if is_dataclass(o) and not isinstance(o, type):
            return {field.name: getattr(o, field.name) for field in fields(o)}
        return super().default(o)


# Without state, and shared: the SDK makes a converter for each activity and each activation.
_ENCODINGS = tuple(
    JSONPlainPayloadConverter(encoder=_Shallow, custom_type_converters=_CONVERTERS)
    if isinstance(converter, JSONPlainPayloadConverter)
    else converter
    for converter in DefaultPayloadConverter.default_encoding_payload_converters
)


class CheckoutPayloadConverter(CompositePayloadConverter):
    """JSON, with one addition: a saga's input that does not decode is a refusal.

    The SDK would fail the workflow *task*, and the server would retry it until an operator terminates the
    workflow. Other values keep that behaviour on purpose: an activity result that this build cannot read
    is a bad deploy, and the saga waits for a good one.
    """

    def __init__(self) -> None:
        super().__init__(*_ENCODINGS)

    def from_payloads(self, payloads: Sequence[Payload], type_hints: list[type] | None = None) -> list[Any]:
        """Decode values; raise InvalidInput for malformed or too long input of a type that asks for it."""
        for payload, hint in zip(payloads, type_hints or (), strict=False):
            limit = getattr(hint, "max_payload_bytes", None)
            # Before decoding: tens of thousands of lines take longer than the 2 s of a workflow task.
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
        """Return the class that wraps each workflow run."""
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


async def describe_task_queue(client: Client, task_queue: str) -> DescribeTaskQueueResponse:
    """Describe a task queue's workflow side, which needs no right that a worker does not need anyway."""
    return await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
    )


def _parameter_count(run: Callable[..., Any]) -> int:
    return run.__code__.co_argcount - 1  # without self


def connection_options(api_key_file: Path | None = None) -> dict[str, Any]:
    """Read `TEMPORAL_*` and temporal.toml the way every Temporal tool does, with our default address.

    Each call reads certificates, and the API key where it is in a file.

    Raises:
        ConfigurationError: the profile, a certificate or the key's file cannot be used. The message has no secret.
    """
    options: dict[str, Any] = {"target_host": DEFAULT_TEMPORAL_ADDRESS, "namespace": "default"}
    options.update(_load_profile())
    if api_key_file is not None:
        options["api_key"] = _api_key_in(api_key_file)
        options.setdefault("tls", True)  # as the SDK does for a key in the environment
    return options


def _load_profile() -> dict[str, Any]:
    """Load the SDK's arguments for a connection by the SDK's own loader.

    Its error shows the line of the file that it cannot read, which may be the line with the API key.
    """
    try:
        return dict(
            ClientConfig.load_client_connect_config(config_file_strict=True, override_env_vars=dict(os.environ))
        )
    except OSError as error:
        problem = _unreadable(error)
    except Exception as error:  # noqa: BLE001 - the loader has a class of its own, which the SDK does not export
        problem = _profile_problem(str(error))
    # Outside the handlers: the loader's error would be this one's context, with the file's line in it.
    raise ConfigurationError(problem)


def _unreadable(error: OSError) -> str:
    named = sorted(
        name for name, value in os.environ.items() if _CERTIFICATE_SETTING.fullmatch(name) and value == error.filename
    )
    what = ", ".join(named) or "a file that the profile in TEMPORAL_CONFIG_FILE or temporal.toml names"
    return f"{what} cannot be read: {error.strerror or type(error).__name__}"


def _profile_problem(message: str) -> str:
    profile = os.environ.get("TEMPORAL_PROFILE", "default")
    if message == f"Profile '{profile}' not found":
        return f"TEMPORAL_PROFILE: there is no profile {profile!a} in the file that TEMPORAL_CONFIG_FILE names"
    if found := _BOTH.search(message):
        return f"TEMPORAL_TLS_* or the profile in TEMPORAL_CONFIG_FILE: {found[0]}"
    where = f"see {found[1]}" if (found := _POSITION.search(message)) else "check its encoding and its rights"
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
    """Return Temporal's address without what comes before an @, which may be a password."""
    before, at, after = str(options["target_host"]).rpartition("@")
    return f"...@{after}" if at else before + after


async def connect(
    *,
    runtime: Runtime | None = None,
    identity: str | None = None,
    api_key_file: Path | None = None,
    is_lazy: bool = False,
) -> Client:
    """Connect to Temporal; a lazy client does so at its first call, and at each until it is connected.

    Raises:
        ConfigurationError: the address is none.
        RuntimeError: no server answers at the address.
    """
    options = connection_options(api_key_file)
    if identity:
        options["identity"] = identity
    if is_lazy and not _ADDRESS.fullmatch(str(options["target_host"])):  # the SDK would say so at the first call
        raise ConfigurationError(f"TEMPORAL_ADDRESS: {place(options)!r} is not as 127.0.0.1:7233")
    try:
        return await Client.connect(**options, data_converter=DATA_CONVERTER, runtime=runtime, lazy=is_lazy)
    except ValueError as error:
        if "cert" in str(error):
            raise ConfigurationError(f"TEMPORAL_TLS_*: {error}") from error
        raise ConfigurationError(f"TEMPORAL_ADDRESS: {place(options)!r} is not as 127.0.0.1:7233: {error}") from error
