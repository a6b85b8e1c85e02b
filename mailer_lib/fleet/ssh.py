"""Logging in to a dispatch server: only with the pinned host key, only with our key, nothing read from ~/.ssh.

``connect`` is for whoever has an event loop; ``run`` is one command, for whoever has none.
"""

import asyncio
from dataclasses import dataclass

import asyncssh

from mailer_lib.fleet.host_keys import check_host_key, fingerprint
from mailer_lib.fleet.login_key import private_text
from mailer_lib.fleet.names import FleetError
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.settings import Settings

CONNECT_S = 15.0
KEEPALIVE_S = 5.0
KEEPALIVE_MISSED = 3  # then the connection is given up: a cut cable is noticed after 15 to 20 s


class SshError(RuntimeError):
    """A server can't be used over SSH; the sentence says why and what to do."""


class SshUnreachableError(SshError):
    """The network, or the host, is away; it may come back by itself."""


class SshRefusedError(SshError):
    """One side refuses the other: another host key, or a login that isn't allowed. A person must look."""


@dataclass(frozen=True)
class Completed:
    """What a command left."""

    status: int | None  # None: a signal ended it
    stdout: str
    stderr: str


async def connect(
    server: DispatchServer, settings: Settings, *, timeout_s: float = CONNECT_S
) -> asyncssh.SSHClientConnection:
    """Log in as ``server.ssh_user``.

    Raises:
        SshUnreachableError: nobody answers.
        SshRefusedError: the host shows another key than the pinned one, or doesn't let us in.
        FleetError, SecretRefError: no key is pinned, or our own key is missing.
    """
    pinned = _pinned(server)
    where = f"{server.name} ({server.host} port {server.ssh_port})"
    try:
        ours = asyncssh.import_private_key(private_text(settings))
    except asyncssh.KeyImportError:
        raise FleetError(f"{settings.ssh_key_ref} (MAILFLEET_SSH_KEY_REF) isn't a private key of OpenSSH") from None
    try:
        return await asyncio.wait_for(
            asyncssh.connect(
                server.host or "",
                server.ssh_port,
                username=server.ssh_user,
                client_keys=[ours],
                known_hosts=([asyncssh.import_public_key(pinned)], [], []),
                preferred_auth="publickey",
                config=None,
                agent_path=None,
                x509_trusted_certs=None,
                gss_host=None,
                keepalive_interval=KEEPALIVE_S,
                keepalive_count_max=KEEPALIVE_MISSED,
            ),
            timeout_s,
        )
    except asyncssh.HostKeyNotVerifiable:
        raise SshRefusedError(
            f"{where} shows another host key than the pinned one ({fingerprint(pinned)}): it may be another machine. "
            f"If it was installed anew, compare and run `mailfleet server pin {server.name}`"
        ) from None
    except asyncssh.PermissionDenied:
        raise SshRefusedError(
            f"{where} doesn't let {server.ssh_user} in: put the line of `mailfleet server key` into that user's "
            "authorized_keys, or provision the server again"
        ) from None
    except TimeoutError:
        raise SshUnreachableError(f"{where} doesn't answer within {timeout_s:.0f} s") from None
    except (OSError, asyncssh.Error) as error:
        raise SshUnreachableError(f"{where} can't be reached: {_words(error)}") from None


def run(
    server: DispatchServer, settings: Settings, command: str, *, stdin: str | None = None, timeout_s: float = 60.0
) -> Completed:
    """Run one shell command there and wait for it.

    Raises:
        SshUnreachableError: the connection is lost, or it takes longer than ``timeout_s``.
        SshRefusedError, FleetError, SecretRefError: as ``connect``.
    """
    return asyncio.run(_run(server, settings, command, stdin, timeout_s))


async def _run(
    server: DispatchServer, settings: Settings, command: str, stdin: str | None, timeout_s: float
) -> Completed:
    async with await connect(server, settings) as connection:
        try:
            done = await asyncio.wait_for(connection.run(command, input=stdin), timeout_s)
        except TimeoutError:
            raise SshUnreachableError(f"{server.name}: the command didn't end within {timeout_s:.0f} s") from None
        except (OSError, asyncssh.Error) as error:
            raise SshUnreachableError(f"{server.name}: the connection is lost: {_words(error)}") from None
    return Completed(done.exit_status, str(done.stdout or ""), str(done.stderr or ""))


def read_host_key(server: DispatchServer, *, timeout_s: float = CONNECT_S) -> str:
    """The Ed25519 key that the host shows at this moment. It proves nothing until somebody has compared it.

    Raises:
        SshUnreachableError: nobody answers.
        FleetError: the server isn't reached by SSH.
    """
    if server.host is None:
        raise FleetError(f"{server.name} is reached by the channel {server.channel}: it has no host key")
    where = f"{server.name} ({server.host} port {server.ssh_port})"

    async def ask() -> asyncssh.SSHKey | None:
        asked = asyncssh.get_server_host_key(
            server.host or "", server.ssh_port, server_host_key_algs=["ssh-ed25519"], config=None
        )
        return await asyncio.wait_for(asked, timeout_s)

    try:
        key = asyncio.run(ask())
    except TimeoutError:
        raise SshUnreachableError(f"{where} doesn't answer within {timeout_s:.0f} s") from None
    except (OSError, asyncssh.Error) as error:
        raise SshUnreachableError(f"{where} can't be asked for its host key: {_words(error)}") from None
    if key is None:
        raise SshUnreachableError(f"{where} shows no Ed25519 host key")
    return check_host_key(key.export_public_key().decode())


def _pinned(server: DispatchServer) -> str:
    if server.host is None:
        raise FleetError(f"{server.name} is reached by the channel {server.channel}, not by SSH")
    if server.host_key is None:
        raise FleetError(
            f"no host key is pinned for {server.name}, so nobody logs in: run `mailfleet server pin {server.name}`"
        )
    return server.host_key


def _words(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
