"""What of the central tables reaches a playbook."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from mailer_lib.database.engine import write
from mailer_lib.fleet import domains, playbooks, pools, provisioning, servers
from mailer_lib.fleet.names import FleetError
from mailer_lib.fleet.playbooks import HostResult, Playbook, PlaybookEvent, PlaybookHost, _Watch
from mailer_lib.settings import Settings
from mailer_lib.terms import ChannelKind, HostOutcome, MtaKind

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDkNtfpbZBVyoOWdTmmLxTXtEC2dLmYYXdy1oTTBSHs6"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "keys").mkdir()
    from mailer_lib.fleet.login_key import make_login_key

    make_login_key(tmp_path / "keys" / "ssh_ed25519")
    return Settings(home=tmp_path)


def add_server(engine: Engine, settings: Settings, **values: object) -> None:
    given = {"name": "mta-1", "pool": "main", "channel": ChannelKind.SSH, "host": "192.0.2.7", "host_key": HOST_KEY}
    with write(engine) as connection:
        pools.ensure(connection, "main", actor="test")
        spec = servers.make_spec(**given | {"helo_name": "mta1.example.com"} | values)
        servers.add(connection, spec, actor="test")


def provision(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch, outcome: HostOutcome
) -> tuple[list[PlaybookHost], dict[str, object]]:
    """Provision mta-1 with a playbook that only notes what it was given, and ends with ``outcome``."""
    seen: list[PlaybookHost] = []
    given: dict[str, object] = {}

    def run(
        settings: Settings, name: Playbook, hosts: list[PlaybookHost], *, variables: dict[str, object], **_: object
    ) -> dict[str, HostResult]:
        seen.extend(hosts)
        given.update(variables)
        return {host.name: HostResult(host.name, outcome, "so it ended") for host in hosts}

    house = settings.home / "agent.tar"
    monkeypatch.setattr(provisioning, "run_playbook", run)
    monkeypatch.setattr(provisioning, "wheelhouse", lambda settings: provisioning_house(house))
    provisioning.provision(engine, settings, ["mta-1"], actor="test")
    return seen, given


def provisioning_house(path: Path) -> object:
    from mailer_lib.fleet.wheelhouse import Wheelhouse

    return Wheelhouse(path, "0.1.0-0123")


def test_a_server_is_configured_from_the_central_tables(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_server(engine, settings, ssh_port=2222)
    with write(engine) as connection:
        pools.set_limit(connection, "main", "gmail", 36_000, actor="test")
        pools.set_limit(connection, "main", "web.de", 100, actor="test")
        domains.add(connection, settings, "news.example.com", actor="test")
    (host,), given = provision(engine, settings, monkeypatch, HostOutcome.CHANGED)
    assert (host.address, host.port, host.user, host.host_key) == ("192.0.2.7", 2222, "root", HOST_KEY)
    assert host.variables == {
        "exim_helo_name": "mta1.example.com",
        "exim_providers": [
            {"name": "gmail", "domains": ["gmail.com", "googlemail.com"], "max_parallel": 10},
            {"name": "web_de", "domains": ["web.de", "email.de"], "max_parallel": 1},
        ],
        "base_ssh_port": 2222,
    }
    assert given["exim_return_path_domains"] == ["bounce.news.example.com"]
    assert str(given["base_authorized_keys"]).startswith("['ssh-ed25519 ")
    with write(engine) as connection:
        stored = servers.get(connection, "mta-1")
    assert (stored.mta, stored.mta_log, stored.mta_spool) == (
        MtaKind.EXIM, "/var/log/exim4/mainlog", "/var/spool/exim4",
    )  # fmt: skip
    assert (stored.smtp_host, stored.smtp_port, stored.host_key) == ("127.0.0.1", 25, HOST_KEY)


def test_what_failed_leaves_the_record_as_it_was(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_server(engine, settings)
    provision(engine, settings, monkeypatch, HostOutcome.FAILED)
    with write(engine) as connection:
        assert servers.get(connection, "mta-1").mta is MtaKind.RELAY


def test_without_a_pinned_host_key_nobody_logs_in(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_server(engine, settings, host_key=None)
    with pytest.raises(FleetError, match="mailfleet server pin mta-1"):
        provision(engine, settings, monkeypatch, HostOutcome.OK)


def test_a_host_is_known_by_address_and_port() -> None:
    assert playbooks.known_hosts_line(PlaybookHost("a", "192.0.2.7", HOST_KEY)) == f"192.0.2.7 {HOST_KEY}\n"
    other = PlaybookHost("a", "192.0.2.7", HOST_KEY, port=2222)
    assert playbooks.known_hosts_line(other) == f"[192.0.2.7]:2222 {HOST_KEY}\n"


def test_a_host_that_cannot_be_reached_is_a_sentence_and_holds_up_nobody(settings: Settings) -> None:
    hosts = [PlaybookHost(name, "127.0.0.1", HOST_KEY, port=9) for name in ("a", "b")]
    results = playbooks.run_playbook(settings, Playbook.DRAIN, hosts, secrets={"unused": "never seen"})
    assert {result.outcome for result in results.values()} == {HostOutcome.FAILED}
    for result in results.values():
        assert result.sentence.startswith("it can't be reached:")
        assert "Connection refused" in result.sentence


def failure(**result: object) -> dict[str, object]:
    return {"event": "runner_on_failed", "event_data": {"host": "a", "task": "Do it", "res": result}}


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ({"msg": "no such file"}, "no such file"),
        ({"msg": "non-zero return code", "stderr": "sh: 1: oops"}, "non-zero return code sh: 1: oops"),
        ({"msg": "it is s3cret-word", "stdout": "line-two"}, "it is [secret] [secret]"),
        ({"censored": "the output has been hidden"}, "it failed, and what it said may hold a secret: log in and look"),
        ({}, "it failed without a word"),
    ],
)
def test_a_failure_is_a_sentence_without_secrets(result: dict[str, object], sentence: str) -> None:
    events: list[PlaybookEvent] = []
    watch = _Watch(["a"], ["s3cret-word\nline-two"], events.append)
    watch.on_event(failure(**result))
    assert events == [PlaybookEvent("a", "Do it", HostOutcome.FAILED, sentence)]
    assert watch.results("failed")["a"] == HostResult("a", HostOutcome.FAILED, sentence, "Do it")


def test_what_changed_behind_no_log_counts() -> None:
    watch = _Watch(["a", "b"], [], lambda event: None)
    hidden = {"host": "a", "task": "Write a key", "res": {"censored": "hidden"}}
    watch.on_event({"event": "runner_on_ok", "event_data": hidden})
    stats = {"processed": {"a": 1, "b": 1}, "changed": {"a": 1}}
    watch.on_event({"event": "playbook_on_stats", "event_data": stats})
    assert watch.results("successful") == {
        "a": HostResult("a", HostOutcome.CHANGED, "1 thing changed"),
        "b": HostResult("b", HostOutcome.OK, "nothing to change"),
    }


def test_a_run_that_reached_no_host_says_why() -> None:
    watch = _Watch(["a"], [], lambda event: None)
    watch.on_event({"event": "error", "stdout": "the playbook can't be parsed"})
    with pytest.raises(FleetError, match="before it reached a host: the playbook can't be parsed"):
        watch.results("failed")
