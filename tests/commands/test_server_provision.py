"""``mailfleet server provision``: progress, results and the exit code; the playbook itself is in tests/fleet."""

from collections.abc import Callable
from typing import Any

import pytest

from mailer_lib.fleet import provisioning
from mailer_lib.fleet.playbooks import HostResult, PlaybookEvent
from mailer_lib.terms import HostOutcome
from tests.conftest import Ran


@pytest.mark.parametrize(
    ("outcome", "sentence", "code"),
    [(HostOutcome.CHANGED, "21 things changed", 0), (HostOutcome.FAILED, "it runs Ubuntu 24.04", 1)],
)
def test_progress_and_results_are_shown(
    mailfleet: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, outcome: HostOutcome, sentence: str, code: int
) -> None:
    def run(*_: Any, on_event: Callable[[PlaybookEvent], None], **__: Any) -> dict[str, HostResult]:
        on_event(PlaybookEvent("mta-1", "Install packages", HostOutcome.CHANGED))
        on_event(PlaybookEvent("mta-1", "Make its folders", HostOutcome.OK))
        return {"mta-1": HostResult("mta-1", outcome, sentence)}

    monkeypatch.setattr(provisioning, "provision", run)
    mailfleet("init")
    ran = mailfleet("server", "provision", "mta-1")
    assert ran.code == code
    assert "mta-1: Install packages: changed" in ran.stdout
    assert "Make its folders" not in ran.stdout
    assert sentence in ran.stdout


def test_a_server_on_this_machine_is_not_installed(mailfleet: Callable[..., Ran]) -> None:
    mailfleet("init")
    mailfleet("pool", "add", "main")
    mailfleet("server", "add", "mta-1", "--pool", "main", "--helo-name", "mta1.example.com")
    ran = mailfleet("server", "provision", "mta-1")
    assert ran.code == 1
    assert "mta-1 has the channel local: only servers with ssh are installed" in " ".join(ran.stderr.split())
