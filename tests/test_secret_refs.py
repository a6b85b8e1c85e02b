"""References to secrets: what they may look like, and that no error shows the secret itself."""

from pathlib import Path

import pytest

from mailer_lib.secret_refs import SecretRefError, check, file_of, resolve
from mailer_lib.settings import Settings


def test_an_environment_variable(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_PASSWORD", "hunter2")
    assert resolve(settings, "env:RELAY_PASSWORD") == "hunter2"
    assert file_of(settings, "env:RELAY_PASSWORD") is None


def test_a_file_below_home_or_anywhere(settings: Settings, tmp_path: Path) -> None:
    (settings.home / "relay.txt").write_text("hunter2\n")
    (tmp_path / "elsewhere").write_text("other\r\n")
    assert resolve(settings, "file:relay.txt") == "hunter2"
    assert resolve(settings, f"file:{tmp_path / 'elsewhere'}") == "other"
    assert file_of(settings, "file:relay.txt") == settings.home / "relay.txt"


@pytest.mark.parametrize(
    "reference", ["", "hunter2-is-the-secret", "env:", "env:A B", "file:", "https://vault", "ENV:X"]
)
def test_anything_else_is_refused_without_being_repeated(reference: str) -> None:
    with pytest.raises(SecretRefError, match="env:NAME") as caught:
        check(reference)
    assert "is-the-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "says"),
    [("env:NOT_SET_ANYWHERE", "isn't set"), ("file:missing.txt", "doesn't exist"), ("file:empty.txt", "is empty"),
     ("file:.", "can't be read"), ("file:binary", "not UTF-8")],
)  # fmt: skip
def test_a_reference_to_nothing_says_so(settings: Settings, reference: str, says: str) -> None:
    (settings.home / "empty.txt").write_text("")
    (settings.home / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SecretRefError, match=says):
        resolve(settings, reference)
