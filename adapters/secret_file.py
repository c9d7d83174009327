"""Secrets in files, as Kubernetes and Compose mount them: read when they are needed, and never shown."""

from pathlib import Path


class SecretUnreadable(Exception):
    """A secret's file cannot be used. The message names the setting and the reason, nothing of the file."""


def read_secret(setting: str, file: Path) -> str:
    """Give the one line in a secret's file.

    Raises:
        SecretUnreadable: it is not there, not readable, or not one line of text.
    """
    try:
        content = file.read_text(encoding="utf-8-sig").rstrip("\r\n")
    except OSError as error:
        problem = error.strerror or type(error).__name__
    except UnicodeError:
        problem = "it is not UTF-8"
    else:
        if content and not _has_control_character(content):
            return content
        problem = "it is not one line of text" if content else "it is empty"
    # Outside of the handlers: a failure's context would carry the path, or all that was read.
    raise SecretUnreadable(f"{setting} cannot be read: {problem}")


def _has_control_character(content: str) -> bool:
    return any(character < " " or "\x7f" <= character <= "\x9f" for character in content)
