"""No message shows a secret: of a setting, of an error, or of its cause."""

import copy
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from adapters.config import ConfigurationError, SecretUnreadable, StarterSettings, WorkerSettings, load, read_secret
from adapters.connector import Connector
from adapters.database_url import parse
from adapters.temporal import connect, connection_options, place
from devstack.stack import DevStack
from sagafence import CannotConnect
from sagafence.devservers.ports import free_port
from tests.canary import CANARY, leaks

ODD = "@/?#:&=%,[] +'\\;"
SECRETS = ("CHECKOUT_DATABASE_URL", "CHECKOUT_DATABASE_URL_FILE", "CHECKOUT_DATABASE_PASSWORD_FILE")


def test_settings_show_no_secret_however_they_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKOUT_DATABASE_URL", f"postgresql://u:{CANARY}@h/d")

    made = load(WorkerSettings)

    shown = [str(made), repr(made), f"{made}", str(vars(made)), str(made.model_dump()), made.model_dump_json()]
    shown += [repr(copy.copy(made)), str(dict(made)), repr(list(made))]
    assert [text for text in shown if CANARY in text] == []
    assert made.database_url.get_secret_value() == f"postgresql+asyncpg://u:{CANARY}@h/d"
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize("odd", ODD)
def test_no_part_of_a_password_with_odd_characters_is_shown(odd: str) -> None:
    refused = []
    for second, third in itertools.product(ODD, "@/?"):
        password = f"{CANARY}1{odd}{CANARY}2{second}{CANARY}3{third}4"
        for shape in ("{}", "1{}", "1/{}?application_name=x", "{}?sslrootcert=x", "{}?x=1&host=a,b&port=1,2,3"):
            for end in ("h/d", "h1,h2:x/d", "h/d?pool=1", "/d?host=h"):
                url = f"postgresql://u:{shape.format(password)}@{end}"
                try:
                    read = parse(url)
                except ValueError as error:
                    refused.append(error)
                else:
                    reported = [repr(read), read.database, read.application_name, *map(str, read.hosts)]
                    assert CANARY not in " ".join(reported), url

    assert refused
    assert [error for error in refused if leaks(error)] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CHECKOUT_DATABASE_URL", CANARY),
        ("CHECKOUT_DATABASE_URL", f"mysql://u:{CANARY}@h/d"),
        ("CHECKOUT_DATABASE_URL", f"postgresql://u:{CANARY}@h/d?sslmode=verify-full&sslrootcert=/{CANARY}"),
        ("CHECKOUT_DATABASE_URL", f"postgresql://u:{CANARY}@h/d\n"),
        ("CHECKOUT_DATABASE_PASSWORD", CANARY),
        ("CHECKOUT_DATABASE_PASSWORD_FILE", f" {CANARY}"),
        ("CHECKOUT_TEMPORAL_API_KEY_FILE", f"{CANARY}\n"),
        ("CHECKOUT_UI_URL", f"http://u:{CANARY}@h"),
        ("CHECKOUT_UI_URL", f"ftp://u:{CANARY}@h"),
        ("CHECKOUT_LOG_LEVEL", f"postgresql://u:{CANARY}@h/d"),
        ("TEMPORAL_API_KEY", f"{CANARY}\n"),
        ("TEMPORAL_CODEC_AUTH", f"{CANARY} "),
        ("TEMPORAL_TLS_CLIENT_KEY_PATH", f"{CANARY} "),
        ("TEMPORAL_ADDRESS", f"u:{CANARY}@h:1 "),
    ],
)
def test_a_wrong_setting_shows_no_secret(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError, match=name) as refused:
        load(WorkerSettings)

    assert leaks(refused.value) == []


def test_settings_that_are_made_in_code_show_no_wrong_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKOUT_DATABASE_URL", f"mysql://u:{CANARY}@h/d")

    with pytest.raises(ValidationError) as refused:
        WorkerSettings()

    assert CANARY not in str(refused.value) + repr(refused.value)


def test_a_starter_never_learns_where_the_database_is() -> None:
    assert {name for name in StarterSettings.model_fields if "database" in name} == set()


# Temporal's profile ------------------------------------------------------------------------------------------

PROFILES = {
    "a text without an end": f'api_key = "{CANARY}',
    "no quotes": f"api_key = {CANARY}",
    "a list": f'api_key = ["{CANARY}"]',
    "a number": "api_key = 4711",
    "twice": f'api_key = "{CANARY}"\napi_key = "{CANARY}"',
    "an unknown name": f'{CANARY} = "x"',
    "no toml": f"{CANARY}\n",
    "a bad escape": f'api_key = "{CANARY}\\q"',
    "a header that is a list": f'[profile.default.grpc_meta]\nauthorization = ["{CANARY}"]',
    "key and file of it": f'[profile.default.tls]\nclient_key_data = "{CANARY}"\nclient_key_path = "/{CANARY}"',
    "a certificate that is not there": f'[profile.default.tls]\nclient_cert_path = "/{CANARY}/x"',
    "a type of tls": f'tls = "{CANARY}"',
    "not utf-8": f'api_key = "{CANARY}\udcff"',
}


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write Temporal's profile file."""

    def write(content: str) -> None:
        file = tmp_path / "temporal.toml"
        file.write_bytes(content.encode(errors="surrogateescape"))
        monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(file))

    return write


@pytest.mark.parametrize("kind", PROFILES)
def test_a_malformed_profile_is_reported_without_its_content(kind: str, profile: Callable[[str], None]) -> None:
    profile(f"[profile.default]\n{PROFILES[kind]}\n")

    with pytest.raises(ConfigurationError, match="TEMPORAL_CONFIG_FILE") as refused:
        connection_options()

    assert leaks(refused.value) == []


@pytest.mark.parametrize(
    ("content", "output"),
    [
        ('[profile.default]\naddress = "here:1"\napi_key = secret\n', "line 3, column 11"),
        ("", "there is no profile 'prod'"),
    ],
)
def test_a_wrong_profile_is_reported_with_what_to_look_for(
    content: str, output: str, profile: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    profile(content)
    monkeypatch.setenv("TEMPORAL_PROFILE", "prod")

    with pytest.raises(ConfigurationError, match=output):
        connection_options()


@pytest.mark.parametrize("name", ["TEMPORAL_TLS_CLIENT_KEY_PATH", "TEMPORAL_TLS_SERVER_CA_CERT_PATH"])
def test_an_unreadable_certificate_is_reported_by_its_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f"/nowhere/{CANARY}")

    with pytest.raises(ConfigurationError, match=f"^{name} cannot be read: No such file") as refused:
        connection_options()

    assert leaks(refused.value) == []


@pytest.mark.parametrize(
    "environment",
    [
        {"TEMPORAL_ADDRESS": f"http://u:{CANARY}@h:x y"},
        {"TEMPORAL_ADDRESS": f"u:{CANARY}@h:1:2"},
        {"TEMPORAL_TLS_CLIENT_KEY_DATA": CANARY},
        {"TEMPORAL_TLS_CLIENT_KEY_DATA": CANARY, "TEMPORAL_TLS_CLIENT_CERT_DATA": CANARY},
        {"TEMPORAL_TLS": "true", "TEMPORAL_TLS_SERVER_NAME": f"{CANARY} x"},
        {"TEMPORAL_API_KEY": f"{CANARY}\nx", "TEMPORAL_TLS": "false"},
        {"TEMPORAL_API_KEY": f"{CANARY}ä", "TEMPORAL_TLS": "false"},
        {"TEMPORAL_GRPC_META_AUTHORIZATION": f"{CANARY}\nx"},
    ],
    ids="+".join,
)
@pytest.mark.filterwarnings("ignore:Target host as URL with scheme")
async def test_a_connection_that_cannot_be_made_shows_no_secret(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", f"127.0.0.1:{free_port()}")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    with pytest.raises((ConfigurationError, RuntimeError)) as refused:
        await connect()

    assert leaks(refused.value) == []


def test_the_address_of_temporal_is_shown_without_what_comes_before_an_at() -> None:
    assert place({"target_host": f"u:{CANARY}@h:7233"}) == "...@h:7233"
    assert place({"target_host": "127.0.0.1:7233"}) == "127.0.0.1:7233"


# Files ---------------------------------------------------------------------------------------------------------

UNREADABLE: dict[str, Callable[[Path], object]] = {
    "missing": lambda _file: None,
    "empty": lambda file: file.write_text("\n"),
    "a folder": lambda file: file.mkdir(),
    "not utf-8": lambda file: file.write_bytes(CANARY.encode() + b"\xff"),
    "two lines": lambda file: file.write_text(f"{CANARY}\n{CANARY}\n"),
    "a nul": lambda file: file.write_text(f"{CANARY}\0"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_secrets_file_that_cannot_be_used_is_reported_by_its_setting_alone(kind: str, tmp_path: Path) -> None:
    file = tmp_path / CANARY
    UNREADABLE[kind](file)

    with pytest.raises(SecretUnreadable, match=r"^CHECKOUT_X_FILE cannot be read: ") as refused:
        read_secret("CHECKOUT_X_FILE", file)

    assert leaks(refused.value) == []


@pytest.mark.parametrize("content", ["geheim", "geheim\n", "geheim\r\n", "\ufeffgeheim\r\n"])
def test_a_secrets_file_ends_as_editors_and_systems_write_it(content: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content.encode())

    assert read_secret("CHECKOUT_X_FILE", file) == "geheim"


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_api_keys_file_that_cannot_be_used_shows_nothing_of_it(kind: str, tmp_path: Path) -> None:
    file = tmp_path / CANARY
    UNREADABLE[kind](file)

    with pytest.raises(ConfigurationError, match=r"^CHECKOUT_TEMPORAL_API_KEY_FILE") as refused:
        connection_options(file)

    assert leaks(refused.value) == []


@pytest.mark.parametrize("content", [CANARY, f"postgresql://u:{CANARY}@h", f"postgresql://u:a@{CANARY}@h/d"])
async def test_a_malformed_url_in_a_file_is_an_outage_that_shows_nothing_of_it(content: str, tmp_path: Path) -> None:
    file = tmp_path / CANARY
    file.write_text(content, encoding="utf-8")
    connector = Connector("postgresql://h/d", answer_seconds=1, settings={}, url_file=file)

    with pytest.raises(CannotConnect, match=r"^CHECKOUT_DATABASE_URL_FILE: the URL in it ") as refused:
        await connector()

    assert refused.value.is_refusal
    assert leaks(refused.value) == []


def test_a_child_of_the_embedded_stack_gets_no_secret_of_whoever_starts_it(
    stack: DevStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*SECRETS, "TEMPORAL_API_KEY", "TEMPORAL_TLS_CLIENT_KEY_DATA"):
        monkeypatch.setenv(name, CANARY)

    assert [name for name, value in stack.environment().items() if CANARY in value] == []
