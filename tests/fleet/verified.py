"""For tests that need a server behind SSH in service: what its verification would leave."""

from sqlalchemy import Connection

from mailer_lib.fleet import server_checks, servers
from mailer_lib.fleet.findings import Finding


def pretend_verified(connection: Connection, name: str, *findings: Finding) -> None:
    """As if it had been verified a moment ago, with these findings."""
    server_checks.store(connection, servers.get(connection, name), findings, actor="test")
