"""The passwords of a server of ours: a random one in a file for us alone, and what follows from it for each role."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

SUPERUSER = "postgres"

# A password of 128 random bits is not guessed faster for being checked fast, and the tests log in a thousand times.
CHEAP_SCRAM = {"scram_iterations": "1"}


class Passwords:
    """Those of one server. The superuser's is the one in the file; from another role's nobody finds it out."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def are_there(self) -> bool:
        """Whether this server has had one."""
        return self._file.exists()

    def keep(self, secret: str) -> None:
        """Keep the superuser's password from now on."""
        self.forget()
        write_for_us_alone(self._file, f"{secret}\n")

    def forget(self) -> None:
        """Delete the file."""
        self._file.unlink(missing_ok=True)

    def of(self, role: str) -> str:
        """Give a role's password.

        Raises:
            RuntimeError: there is none yet, before the server's first start.
        """
        try:
            secret = self._file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise RuntimeError("PostgreSQL was not started") from None
        if role == SUPERUSER:
            return secret
        return hmac.digest(secret.encode(), role.encode(), hashlib.sha256).hex()[:32]


def new_secret() -> str:
    """Draw a password."""
    return secrets.token_hex(16)


def write_for_us_alone(path: Path, text: str) -> None:
    """Write a file anew, that nobody else can ever have opened."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
