"""docs/deployment.md says what the code does: its table of settings, its commands and its compose file."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from mailer_lib import commands
from mailer_lib.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())


def settings_table() -> str:
    """The table as the page must have it."""
    lines = ["| variable | default | what it is |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        lines.append(f"| `MAILFLEET_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines)


def test_the_table_of_settings_is_that_of_the_code() -> None:
    assert settings_table() in PAGE, f"put this into docs/deployment.md:\n{settings_table()}"


def test_every_command_on_the_page_exists() -> None:
    named = set(re.findall(r"\bmailfleet ([a-z]+)", PAGE))
    assert named <= {noun.name for noun in commands.NOUNS}
    assert named >= {"init", "doctor", "db", "backup", "domain", "server", "pool", "serve"}


ROLES = ("api-server", "scheduler", "dag-processor", "triggerer", "serve")


@pytest.mark.parametrize("role", ROLES)
def test_every_role_runs_the_one_image_with_the_same_settings(role: str) -> None:
    service, set_up = COMPOSE["services"][role], COMPOSE["services"]["set-up"]
    assert service["build"] == "."
    for shared in ("image", "environment", "volumes"):
        assert service[shared] == set_up[shared]
    assert service["depends_on"] == {"set-up": {"condition": "service_completed_successfully"}}


def test_nothing_is_published_but_on_localhost() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_compose_file_sets_only_settings_that_exist() -> None:
    ours = {name for name in COMPOSE["x-role"]["environment"] if name.startswith("MAILFLEET_")}
    assert ours <= {f"MAILFLEET_{name.upper()}" for name in Settings.model_fields}


def test_no_secret_has_a_default_and_the_example_names_each() -> None:
    text = (ROOT / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{([A-Z_]+)", text))
    example = dict(line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line)
    assert asked - {"MAILFLEET_TAG", "MAILFLEET_APPROVER_MUST_DIFFER"} == set(example)
    for name, value in example.items():
        if re.search("PASSWORD|KEY|SECRET", name):
            assert value == ""
            assert re.search(rf"\$\{{{name}:(\?|-\}})", text), name


def test_the_image_copies_only_what_exists_and_packages_are_marked() -> None:
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            *sources, _ = shlex.split(line)[1:]
            assert all((ROOT / source).exists() for source in sources), line
    for line in (ROOT / "packages.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[a-z0-9.+-]+( \[(image|build|test)\])+", line), line
