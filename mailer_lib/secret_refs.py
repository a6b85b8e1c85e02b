"""Secrets that the database only points to: ``env:NAME`` or ``file:PATH``, relative paths below ``settings.home``.

The secret itself is in no table, no backup of the database alone, and no log.
"""

import os
import re
from pathlib import Path

from mailer_lib.settings import Settings

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SecretRefError(ValueError):
    """A reference is malformed, or points to nothing; the sentence says which and what to do."""


def check(reference: str) -> str:
    """The reference itself, when it is well-formed; what it points to may come later.

    Raises:
        SecretRefError: it is neither ``env:NAME`` nor ``file:PATH``.
    """
    scheme, _, rest = reference.partition(":")
    if scheme == "env" and _ENV_NAME.fullmatch(rest):
        return reference
    if scheme == "file" and rest and "\0" not in rest:
        return reference
    raise SecretRefError(
        "a secret is given as env:NAME (an environment variable) or file:PATH (relative paths are below "
        f"MAILFLEET_HOME); this one begins with {scheme[:8]!r}"  # no more of it: it may be the secret itself
    )


def file_of(settings: Settings, reference: str) -> Path | None:
    """The file that a ``file:`` reference names; None for ``env:``."""
    scheme, _, rest = check(reference).partition(":")
    return settings.home / rest if scheme == "file" else None  # an absolute path replaces home


def resolve(settings: Settings, reference: str) -> str:
    """The secret's text, without the newline that editors put at its end.

    Raises:
        SecretRefError: malformed, or the variable or file isn't there, is empty or can't be read.
    """
    path = file_of(settings, reference)
    if path is None:
        name = reference.removeprefix("env:")
        value = os.environ.get(name, "")
        if not value:
            raise SecretRefError(f"the environment variable {name} isn't set; it should hold a secret ({reference})")
        return value
    try:
        value = path.read_text().rstrip("\r\n")
    except FileNotFoundError:
        raise SecretRefError(f"{path} doesn't exist; it should hold a secret ({reference})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SecretRefError(
            f"{path} can't be read as text: {getattr(error, 'strerror', None) or 'not UTF-8'}"
        ) from None
    if not value:
        raise SecretRefError(f"{path} is empty; it should hold a secret ({reference})")
    return value
