import os
from pathlib import Path
from urllib.parse import urlencode

import pytest
from sqlalchemy.engine import make_url

from adapters.config import ApiSettings, ConfigurationError, WorkerSettings, load
from adapters.database_url import parse
from adapters.temporal import connection_options
from devstack.stack import DATABASE, DEFAULT_PORTS, READER, ROLE


def settings(monkeypatch: pytest.MonkeyPatch, url: str) -> WorkerSettings:
    monkeypatch.setenv("CHECKOUT_DATABASE_URL", url)
    return load(WorkerSettings)


def refusal(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> str:
    """Give what is said of a wrong setting."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refused:
        load(WorkerSettings)
    return str(refused.value)


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ("postgresql://u:p@h:1/d", "postgresql+asyncpg://u:p@h:1/d"),
        ("postgres://u@h/d", "postgresql+asyncpg://u@h/d"),
        ("postgresql+asyncpg://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u:p@h/d?sslmode=require", "postgresql+asyncpg://u:p@h/d?sslmode=require"),
    ],
)
def test_a_database_url_is_taken_as_other_tools_write_it(
    given: str, understood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings(monkeypatch, given).database_url.get_secret_value() == understood


@pytest.mark.parametrize(
    "wrong",
    [
        "mysql://u:geheim@h/d",
        "mysql://u:ge/heim@h/d",
        "postgresql://u:geheim@h:port/d",
        "postgresql://u:geheim@h",
        "postgresql://h/d?password=geheim",
        "postgresql://h/d?pool=geheim",
        "postgresql://u:geheim@h:1,h:x/d",
        "postgresql://u:geheim@h1,,h2/d",
        "postgresql://u:geheim@/d?host=a,b&port=1,2,3",
        "postgresql://u:geheim@h/d?sslmode=geheim",
        "postgresql://u:geheim@h/d?target_session_attrs=read-only",
        "postgresql://u:geheim@h/d?target_session_attrs=standby",
        "postgresql://u:geheim@h/d?channel_binding=maybe",
        "postgresql://u:geheim@h/d?connect_timeout=soon",
        "postgresql://u:geheim@h/d?sslmode=verify-full&sslrootcert=/no/such/file",
        "postgresql://u:geheim@h/d?sslmode=require&sslrootcert=system",
        "postgresql://u:geheim@h/d?gssencmode=require",
        "postgresql://u:geheim@h/d?sslmode=require&sslcrl=/no/such/file",
        "postgresql://u:geheim@h:0/d",
        "postgresql://u:geheim@h:65536/d",
        "geheim",
        "",
    ],
)
def test_a_wrong_database_url_is_refused_without_being_shown(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="CHECKOUT_DATABASE_URL") as refused:
        settings(monkeypatch, wrong)

    assert "geheim" not in str(refused.value)
    assert "heim" not in str(refused.value)


def test_the_defaults_find_what_make_up_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("CHECKOUT_", "TEMPORAL_"))]:
        monkeypatch.delenv(name)

    made, options = load(WorkerSettings), connection_options()

    url = make_url(made.database_url.get_secret_value())
    assert (url.host, url.port) == ("127.0.0.1", DEFAULT_PORTS.postgres)
    assert (url.username, url.database) == (ROLE, DATABASE)
    assert options["target_host"] == f"127.0.0.1:{DEFAULT_PORTS.temporal}"
    assert options["namespace"] == "default"
    assert made.ui_url == f"http://127.0.0.1:{DEFAULT_PORTS.ui}"
    api = load(ApiSettings)
    reads = make_url(api.database_url.get_secret_value())
    assert (reads.host, reads.port, reads.username, reads.database) == (url.host, url.port, READER, DATABASE)
    assert (api.api_host, api.api_port) == ("127.0.0.1", DEFAULT_PORTS.api)


@pytest.mark.parametrize(
    ("url", "hosts", "user", "password", "database"),
    [
        ("postgres://u:p@h/d", "h:5432", "u", "p", "d"),
        ("postgresql://u:p@h1:5432,h2:5433/d?target_session_attrs=read-write", "h1:5432 h2:5433", "u", "p", "d"),
        ("postgresql://u@h1,h2/d?port=6432", "h1:6432 h2:6432", "u", None, "d"),
        ("postgresql://u@/d?host=h1,h2&port=1,2", "h1:1 h2:2", "u", None, "d"),
        ("postgresql://u:p@/d?host=/var/run/postgresql", "/var/run/postgresql:5432", "u", "p", "d"),
        ("postgresql://u:p@/d?host=/cloudsql/project:region:shop", "/cloudsql/project:region:shop:5432", "u", "p", "d"),
        ("postgresql://u@%2Fvar%2Frun%2Fpostgresql:6432/d", "/var/run/postgresql:6432", "u", None, "d"),
        ("postgresql://u@[::1]:6432/d", "::1:6432", "u", None, "d"),
        ("postgresql://u%40x:p%2Fq%40@h/my%20shop", "h:5432", "u@x", "p/q@", "my shop"),
        ("postgresql:///?host=h&user=u&dbname=d", "h:5432", "u", None, "d"),
        ("postgresql://other@h/other?user=u&dbname=d", "h:5432", "u", None, "d"),
        ("postgresql://u@h:65535/d", "h:65535", "u", None, "d"),
        ("postgresql://u:@h/d", "h:5432", "u", "", "d"),
        ("postgresql:///d", "the default host:5432", None, None, "d"),
    ],
)
def test_where_a_database_is_is_read_as_libpq_reads_it(
    url: str, hosts: str, user: str | None, password: str | None, database: str
) -> None:
    read = parse(url)

    assert " ".join(map(str, read.hosts)) == hosts
    assert (read.user, read.password, read.database) == (user, password, database)
    assert "p/q" not in repr(read)


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
@pytest.mark.parametrize("name", ["sslmode", "ssl"])
def test_every_sslmode_reaches_the_driver_with_its_files(name: str, mode: str, tmp_path: Path) -> None:
    files = {file: str(tmp_path / file) for file in ("sslrootcert", "sslcert", "sslkey", "sslcrl")}
    for path in files.values():
        Path(path).touch()

    read = parse(f"postgresql://u@h/d?{name}={mode}&{urlencode(files)}")

    assert read.tls == {"sslmode": mode, **files}


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_who_asks_for_a_servers_certificate_says_whom_to_trust_as_for_libpq(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://u@h/d?sslmode={mode}"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    with pytest.raises(ValueError, match="needs sslrootcert"):
        parse(url)

    (tmp_path / "trusted.crt").touch()
    monkeypatch.setenv("PGSSLROOTCERT", str(tmp_path / "trusted.crt"))

    assert parse(url).tls == {"sslmode": mode}


def test_what_the_driver_cannot_do_is_a_warning_unless_the_certificate_does_the_same() -> None:
    bound = "postgresql://u:p@h/d?channel_binding=require"

    assert "channel_binding" in (parse(f"{bound}&sslmode=require").caution or "")
    assert parse(f"{bound}&sslmode=verify-full&sslrootcert=system").caution is None
    assert parse("postgresql://u:p@h/d?channel_binding=prefer").caution is None


def test_an_unknown_parameter_of_a_database_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"CHECKOUT_DATABASE_URL: has unknown parameters pool, swim;"):
        settings(monkeypatch, "postgresql://u:p@h/d?swim=1&pool=2&sslmode=require")


@pytest.mark.parametrize(
    ("name", "value", "understood"),
    [
        ("log_level", "debug", "DEBUG"),
        ("log_level", "Info", "INFO"),
        ("ui_url", "https://ui.example/", "https://ui.example"),  # links have no slash twice
        ("database_password_file", "", None),
        ("log_file", "/home/Ana Mar\u00eda/saga.log", Path("/home/Ana Mar\u00eda/saga.log")),
    ],
)
def test_a_setting_is_read_as_it_is_meant(
    name: str, value: str, understood: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"CHECKOUT_{name.upper()}", value)

    assert getattr(load(WorkerSettings), name) == understood


@pytest.mark.parametrize("name", ["CHECKOUT_TASK_QUEUE", "CHECKOUT_LOG_LEVEL", "CHECKOUT_UI_URL"])
def test_what_has_to_be_something_cannot_be_empty(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, name, "").startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CHECKOUT_PORT", "tcp://10.0.0.7:80"),
        ("CHECKOUT_PORT_80_TCP", "tcp://10.0.0.7:80"),
        ("CHECKOUT_PORT_80_TCP_PROTO", "tcp"),
        ("CHECKOUT_PORT_80_TCP_PORT", "80"),
        ("CHECKOUT_PORT_80_TCP_ADDR", "10.0.0.7"),
        ("CHECKOUT_SERVICE_HOST", "10.0.0.7"),
        ("CHECKOUT_SERVICE_PORT", "80"),
        ("CHECKOUT_SERVICE_PORT_HTTP", "80"),
        ("CHECKOUT_API_V2_PORT", "udp://10.0.0.8:53"),
        ("CHECKOUT_DATABASE_SERVICE_HOST", "10.0.0.9"),
    ],
)
def test_what_kubernetes_says_of_services_is_no_setting(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)

    load(WorkerSettings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CHECKOUT_PORT", "8080"),
        ("CHECKOUT_PORT", "http://10.0.0.7:80"),
        ("CHECKOUT_SERVICE", "10.0.0.7"),
        ("CHECKOUT_SERVICE_HOSTS", "10.0.0.7"),
        ("CHECKOUT_DATABSE_URL", "postgresql://h/d"),
        ("CHECKOUT_EXPORT", "tcp"),
    ],
)
def test_what_only_looks_like_it_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, name, value).startswith(f"{name}: there is no such setting")


def test_a_setting_under_its_earlier_name_is_refused_with_todays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, "CHECKOUT_TELLS_LOG", "never") == (
        "CHECKOUT_TELLS_LOG: it is called CHECKOUT_WRITES_LOG now"
    )

    monkeypatch.delenv("CHECKOUT_TELLS_LOG")
    monkeypatch.setenv("CHECKOUT_WRITES_LOG", "never")
    load(WorkerSettings)


@pytest.mark.parametrize(("name", "value"), [("CHECKOUT_LANE", "fast"), ("CHECKOUT_EXECUTION_MODE", "local-first")])
def test_a_setting_that_is_gone_is_not_ignored(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, name, value).startswith(f"{name}: there are no execution modes any more")


@pytest.mark.parametrize("end", [" ", "\n", "\r", "\t", "\x07", "\x7f", "\x85", "\xa0", "\u2003", "\u200b", "\ufeff"])
@pytest.mark.parametrize("name", ["CHECKOUT_TASK_QUEUE", "CHECKOUT_UI_URL", "CHECKOUT_LOG_FILE", "TEMPORAL_ADDRESS"])
def test_invisible_characters_at_the_ends_of_a_setting_are_refused_and_shown(
    name: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (f"http://here{end}", f"{end}http://here"):
        [line] = refusal(monkeypatch, name, value).splitlines()
        assert line == f"{name}: begins or ends with white space or a control character (it is {value!a})"


@pytest.mark.parametrize("unseen", ["\n", "\r", "\t", "\x07", "\x1b[2J", "\x7f", "\x85", "\u200b", "\ufeff"])
@pytest.mark.parametrize("name", ["CHECKOUT_TASK_QUEUE", "CHECKOUT_UI_URL", "CHECKOUT_LOG_FILE", "TEMPORAL_ADDRESS"])
def test_a_control_character_within_a_setting_is_refused_and_shown(
    name: str, unseen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = f"http://he{unseen}re"

    assert refusal(monkeypatch, name, value) == f"{name}: has a control character in it (it is {value!a})"


@pytest.mark.parametrize("name", ["CHECKOUT_DATABASE_URL", "TEMPORAL_API_KEY", "TEMPORAL_GRPC_META_AUTHORIZATION"])
@pytest.mark.parametrize("secret", ["postgresql://u:geh{}eim@h/d{}", "geh{}eim{}"])
def test_a_secret_with_a_control_character_is_named_and_not_shown(
    name: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    within = refusal(monkeypatch, name, secret.format("\n", ""))
    at_its_end = refusal(monkeypatch, name, secret.format("", "\n"))

    assert within == f"{name}: has a control character in it"
    assert at_its_end.startswith(f"{name}: begins or ends with white space")
    assert "geheim" not in at_its_end


def test_every_problem_is_reported_at_once_beside_invisible_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKOUT_LOG_LEVEL", "LOUD")
    monkeypatch.setenv("CHECKOUT_NONE", "1")

    said = refusal(monkeypatch, "CHECKOUT_UI_URL", " nowhere").splitlines()

    assert [line.partition(":")[0] for line in said] == ["CHECKOUT_NONE", "CHECKOUT_UI_URL", "CHECKOUT_LOG_LEVEL"]


def test_a_certificate_in_a_setting_has_the_lines_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
    monkeypatch.setenv("TEMPORAL_TLS_CLIENT_CERT_DATA", f"{certificate}\n")
    monkeypatch.setenv("TEMPORAL_GRPC_META_CERTIFICATE", certificate)

    load(WorkerSettings)
