"""The command line as a whole: it lists its nouns quickly, and says sentences instead of tracebacks."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from sqlalchemy.exc import OperationalError

from mailer_lib import commands
from mailer_lib.commands.errors import CommandError, explain
from mailer_lib.settings import SettingsError
from tests.conftest import Ran


def test_help_names_every_noun(mailfleet: Callable[..., Ran]) -> None:
    ran = mailfleet("--help")
    assert ran.code == 0
    for noun in commands.NOUNS:
        assert noun.name in ran.stdout
        assert noun.help in ran.stdout


def test_help_imports_no_noun_and_nothing_heavy() -> None:
    heavy = (
        "sqlalchemy",
        "pandas",
        "pyarrow",
        "duckdb",
        "alembic",
        "fastapi",
        "cryptography",
        "mailer_lib.commands.init",
    )
    code = (
        "import sys\nfrom mailer_lib.cli import main\nassert main(['--help']) == 0\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("noun", commands.NOUNS, ids=lambda n: n.name)
def test_every_noun_has_help(mailfleet: Callable[..., Ran], noun: commands.Noun) -> None:
    ran = mailfleet(noun.name, "--help")
    assert (ran.code, ran.stderr) == (0, "")
    assert f"mailfleet {noun.name}" in ran.stdout


def test_a_mistyped_noun_is_answered_with_the_nearest(mailfleet: Callable[..., Ran]) -> None:
    ran = mailfleet("docter")
    assert ran.code == 2
    assert "Did you mean 'doctor'?" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_wrong_setting_is_one_error_without_a_traceback(
    mailfleet: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILFLEET_SERVE_PORT", "http")
    ran = mailfleet("db", "current")
    assert ran.code == 1
    assert "MAILFLEET_SERVE_PORT" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_database_without_tables_says_what_to_run(mailfleet: Callable[..., Ran]) -> None:
    ran = mailfleet("server", "list")
    assert (ran.code, ran.stdout) == (1, "")
    assert "mailfleet init" in ran.stderr


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (CommandError("no such list", 2), "no such list", 2),
        (SettingsError("there is no key"), "there is no key", 1),
        (FileNotFoundError(2, "No such file or directory", "people.csv"), "people.csv: No such file or directory", 1),
        (KeyboardInterrupt(), "interrupted; run the same command again to go on", 130),
    ],
)
def test_errors_are_sentences(error: BaseException, sentence: str, code: int) -> None:
    assert explain(error) == (sentence, code)


def test_a_database_error_shows_no_statement_and_no_address() -> None:
    error = OperationalError("INSERT …", {"address": "ann@example.org"}, Exception(2006, "server has gone away"))
    sentence, code = explain(error)
    assert code == 1
    assert "server has gone away" in sentence
    assert "ann@example.org" not in sentence


def test_a_defect_of_ours_says_so() -> None:
    sentence, code = explain(ZeroDivisionError("division by zero"))
    assert code == 3
    assert "defect" in sentence
