import os

import pytest
from sqlalchemy.engine import make_url

from adapters.config import ConfigurationError, WorkerSettings, load
from adapters.temporal import connection_options
from embedded.stack import DATABASE, DEFAULT_PORTS, ROLE


def settings(monkeypatch: pytest.MonkeyPatch, url: str) -> WorkerSettings:
    monkeypatch.setenv("CHECKOUT_DATABASE_URL", url)
    return load(WorkerSettings)


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ("postgresql://u:p@h:1/d", "postgresql+asyncpg://u:p@h:1/d"),
        ("postgres://u@h/d", "postgresql+asyncpg://u@h/d"),
        ("postgresql+asyncpg://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u:p@h/d?sslmode=require", "postgresql+asyncpg://u:p@h/d?ssl=require"),
    ],
)
def test_a_database_url_is_taken_as_other_tools_write_it(
    given: str, understood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings(monkeypatch, given).database_url == understood


@pytest.mark.parametrize(
    "wrong",
    [
        "mysql://u:geheim@h/d",
        "mysql://u:ge/heim@h/d",
        "postgresql://u:geheim@h:port/d",
        "postgresql://u:geheim@h",
        "postgresql://h/d?password=geheim",
        "postgresql://h/d?pool=geheim",
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

    url = make_url(made.database_url)
    assert (url.host, url.port) == ("127.0.0.1", DEFAULT_PORTS.postgres)
    assert (url.username, url.database) == (ROLE, DATABASE)
    assert options["target_host"] == f"127.0.0.1:{DEFAULT_PORTS.temporal}"
    assert options["namespace"] == "default"
    assert made.ui_url == f"http://127.0.0.1:{DEFAULT_PORTS.ui}"
