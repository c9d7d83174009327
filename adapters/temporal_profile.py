"""Where Temporal is, and what it knows us by: `TEMPORAL_*` and temporal.toml, read by the SDK's own loader.

The loader shows the line of the file that it cannot read, and that may be the line with the API key.
"""

import os
import re
from typing import Any

from temporalio.envconfig import ClientConfig

from adapters.config import ConfigurationError

_PLACE = re.compile(r"TOML parse error at (line \d+, column \d+)")
# The loader's own words about the names of settings, with nothing of a value in them.
_BOTH = re.compile(r"Cannot specify both \w+ and \w+")
_CERTIFICATE_SETTING = re.compile(r"TEMPORAL_TLS_\w+_PATH")


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
