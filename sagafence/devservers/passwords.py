"""The passwords of an embedded server: a random one in a private file, and one derived from it for each role."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

SUPERUSER = "postgres"

# 128 random bits are not guessed faster for a fast check, and the tests log in a thousand times.
CHEAP_SCRAM = {"scram_iterations": "1"}


class Passwords:
    """Those of one server. The file has the superuser's; it cannot be computed from another role's."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def are_there(self) -> bool:
        """Whether the file exists."""
        return self._file.exists()

    def keep(self, secret: str) -> None:
        """Write the superuser's password to the file."""
        self.forget()
        write_for_us_alone(self._file, f"{secret}\n")

    def forget(self) -> None:
        """Delete the file."""
        self._file.unlink(missing_ok=True)

    def of(self, role: str) -> str:
        """Return a role's password.

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
    """Write a new file that no other user can ever have opened."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
