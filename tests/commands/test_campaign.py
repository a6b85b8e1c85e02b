"""``mailfleet campaign``: what an operator sees."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from mailer_lib.settings import Settings
from tests.conftest import Ran
from tests.message.installation import furnish, subscribe
from tests.message.test_campaign import YAML, write_files

Mailfleet = Callable[..., Ran]


@pytest.fixture
def installed(sqlite_engine: Engine, settings: Settings) -> Engine:
    furnish(sqlite_engine, settings)
    return sqlite_engine


def test_create_show_list(
    installed: Engine, mailfleet: Mailfleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example/")
    path = write_files(tmp_path)

    assert "campaign spring: stored" in mailfleet("campaign", "create", path).stdout
    assert "there already" in mailfleet("campaign", "create", path).stdout
    shown = mailfleet("campaign", "show", "spring")
    assert shown.code == 0
    assert "Hi {{ contact.given_name }}" in shown.stdout
    assert "https://airflow.example/mailfleet/trigger?campaign=spring&edition=1&mode=send" in shown.stdout
    assert "spring" in mailfleet("campaign", "list").stdout


def test_a_wrong_file_and_a_wrong_name(installed: Engine, mailfleet: Mailfleet, tmp_path: Path) -> None:
    path = write_files(tmp_path, YAML.replace("name: spring", "name: Spring"))
    refused = mailfleet("campaign", "create", path)
    assert refused.code == 1
    assert "campaign.yaml, line 1, name:" in refused.stderr
    mailfleet("campaign", "create", write_files(tmp_path))
    unknown = mailfleet("campaign", "show", "sprin")
    assert unknown.code == 1
    assert "did you mean spring?" in unknown.stderr


def test_preview(installed: Engine, settings: Settings, mailfleet: Mailfleet, tmp_path: Path) -> None:
    subscribe(installed, settings, "ann@example.com")
    mailfleet("campaign", "create", write_files(tmp_path, YAML + "variants: [{name: A}, {name: B, subject: Bye}]\n"))
    html = tmp_path / "out.html"

    shown = mailfleet("campaign", "preview", "spring", "--contact", "Ann@Example.COM", "--html", html)

    assert shown.stdout.startswith("Subject: Hi Ann\n\nHi Ann")
    assert "<p>Hi Ann</p>" in html.read_text()
    assert (
        "Subject: Bye"
        in mailfleet("campaign", "preview", "spring", "--contact", "ann@example.com", "--variant", "B").stdout
    )
    assert (
        "has no variant 'C'"
        in mailfleet("campaign", "preview", "spring", "--contact", "ann@example.com", "--variant", "C").stderr
    )
    nobody = mailfleet("campaign", "preview", "spring", "--contact", "bob@example.com")
    assert nobody.code == 1
    assert "no contact with that address" in nobody.stderr


def test_preflight_fails_on_an_error(installed: Engine, mailfleet: Mailfleet, tmp_path: Path) -> None:
    mailfleet("campaign", "create", write_files(tmp_path))

    run = mailfleet("campaign", "preflight", "spring")

    assert run.code == 1
    assert "there are no criteria" in run.stdout
    assert "errors" in run.stdout.splitlines()[-1]
