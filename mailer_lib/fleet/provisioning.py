"""From the central tables to a playbook's variables: what a dispatch server is to be, and provisioning it.

How many deliveries to a mailbox provider go on at once follows from the sending pool's limit an hour. The limit itself
is held where rows are granted; this one keeps Exim's queue, with its retries, from running ahead of it.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

from sqlalchemy import Connection, Engine

from mailer_lib.contacts.providers import domains_of
from mailer_lib.database.audit import record
from mailer_lib.database.engine import now, read, write
from mailer_lib.fleet import domains, pools, server_checks, servers, sources
from mailer_lib.fleet.login_key import public_line
from mailer_lib.fleet.names import FleetError
from mailer_lib.fleet.playbooks import HostResult, Playbook, PlaybookEvent, PlaybookHost, run_playbook
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.fleet.states import MAY_SEND
from mailer_lib.fleet.wheelhouse import wheelhouse
from mailer_lib.settings import Settings
from mailer_lib.terms import ChannelKind, HostOutcome, MtaKind, SmtpSecurity

ADMIN_USER = "root"  # who installs; the agent logs in as the server's ssh_user
DELIVERY_S = 1.0  # of a connection to a mailbox provider, about: with the handshake, its checks and its reply
MTA_LOG, MTA_SPOOL = "/var/log/exim4/mainlog", "/var/spool/exim4"


def provision(
    engine: Engine,
    settings: Settings,
    names: Sequence[str],
    *,
    actor: str,
    admin_user: str = ADMIN_USER,
    on_event: Callable[[PlaybookEvent], None] = lambda event: None,
    check: bool = False,
) -> dict[str, HostResult]:
    """Install dispatch servers of the channel ``ssh``, all at once, and store where their MTA's records are.

    Raises:
        FleetError: a server can't be reached by SSH as it is stored, or nothing could be run.
    """
    with read(engine) as connection:
        found = [servers.get(connection, name) for name in names]
        hosts = [playbook_host(connection, server, admin_user=admin_user) for server in found]
        shared = exim_variables(connection)
    agent = wheelhouse(settings)
    variables = shared | {
        "base_authorized_keys": [public_line(settings)],
        "agent_wheelhouse": str(agent.path),
        "agent_release": agent.release,
    }
    results = run_playbook(settings, Playbook.PROVISION, hosts, variables=variables, on_event=on_event, check=check)
    if not check:
        with write(engine) as connection:
            for server in found:
                if results[server.name].outcome is not HostOutcome.FAILED:
                    servers.add(connection, provisioned(server), actor=actor, replace=True)
                    servers.set_provisioned(connection, server.name, now())
                    sources.set_in_use(connection, server.id, addresses_of(server))
            note(connection, actor, Playbook.PROVISION, results)
    return results


def note(connection: Connection, actor: str, playbook: Playbook, results: Mapping[str, HostResult]) -> None:
    """What a playbook came to on each host, for the audit log."""
    for result in results.values():
        detail = {"outcome": result.outcome, "result": result.sentence} | ({"task": result.task} if result.task else {})
        record(connection, actor, f"playbook {playbook}", f"server:{result.host}", detail)


def provisioned(server: DispatchServer) -> servers.ServerSpec:
    """Its record once the playbook is through: Exim beside the agent, and where its records are."""
    return servers.make_spec(
        **server.spec().model_dump()
        | {
            "mta": MtaKind.EXIM,
            "mta_log": MTA_LOG,
            "mta_spool": MTA_SPOOL,
            "mta_queues": True,
            "smtp_host": "127.0.0.1",
            "smtp_port": 25,
            "smtp_security": SmtpSecurity.NONE,
            "smtp_user": None,
            "smtp_password_ref": None,
        }
    )


def playbook_host(connection: Connection, server: DispatchServer, *, admin_user: str = ADMIN_USER) -> PlaybookHost:
    """The server as Ansible reaches it, with the variables that are its own.

    Raises:
        FleetError: it isn't reached by SSH, or its host key isn't pinned.
    """
    if server.channel is not ChannelKind.SSH or server.host is None:
        raise FleetError(f"{server.name} has the channel {server.channel}: only servers with ssh are installed")
    if server.host_key is None:
        raise FleetError(f"the host key of {server.name} isn't pinned: mailfleet server pin {server.name}")
    own: dict[str, object] = {
        "exim_helo_name": server.helo_name,
        "exim_providers": exim_providers(pools.get(connection, server.pool).per_hour),
        "base_ssh_port": server.ssh_port,
    }
    if server.sources:
        check = server_checks.latest(connection, server.id)
        if server.state in MAY_SEND and (check is None or check.subject.get("sources", []) != list(server.sources)):
            raise FleetError(
                f"{server.name} sends, and was never verified with all of its addresses: "
                f"`mailfleet server verify {server.name}` first"
            )
        own["exim_sources"] = [dict(zip(("address", "helo_name"), one.split(), strict=True)) for one in server.sources]
    return PlaybookHost(server.name, server.host, server.host_key, server.ssh_port, admin_user, own)


def addresses_of(server: DispatchServer) -> list[str]:
    """That its mail leaves from, as far as they are stored."""
    return [one.split()[0] for one in server.sources]


def exim_variables(connection: Connection) -> dict[str, Any]:
    """What every server has alike: bounces of any sending domain may come to any of them."""
    return {"exim_return_path_domains": sorted(item.return_path_domain for item in domains.list_domains(connection))}


def exim_providers(per_hour: Mapping[str, int]) -> list[dict[str, Any]]:
    """Exim's limits by mailbox provider from those of the sending pool; who has none there is not limited here."""
    return [
        {
            "name": provider.replace(".", "_").replace("-", "_"),
            "domains": list(domains_of(provider)),
            "max_parallel": max(1, ceil(limit * DELIVERY_S / 3600)),
        }
        for provider, limit in sorted(per_hour.items())
        if domains_of(provider)
    ]
