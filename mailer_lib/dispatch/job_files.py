"""What a new job folder needs: job, bundle and secrets, from the central database and the snapshot store."""

from sqlalchemy import Connection

from mailer_lib import secret_refs
from mailer_lib.agent.job import BreakerRules, Job, Secrets, SmtpServer
from mailer_lib.agent.mta_queue import queue_name
from mailer_lib.dispatch.plan import Slot, limits_for
from mailer_lib.dispatch.sends import SendError, SendRecord
from mailer_lib.fleet import dkim_keys, domains, servers
from mailer_lib.message.bundle import Bundle
from mailer_lib.message.compile import bundle_path
from mailer_lib.settings import Settings
from mailer_lib.tokens import send_token_key


def bundle_bytes(settings: Settings, send: SendRecord) -> bytes:
    """The frozen message of the send.

    Raises:
        SendError: it isn't frozen yet, or its file is gone.
    """
    if send.content_hash is None:
        raise SendError(f"the message of {send.ref} isn't frozen yet")
    path = bundle_path(settings, send.content_hash)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise SendError(f"{path}, the frozen message of {send.ref}, is gone; restore it from the backup") from None


def make_job(
    connection: Connection, settings: Settings, send: SendRecord, slot: Slot, message: bytes
) -> tuple[Job, Secrets]:
    """job.json and secrets.json for one slot of one send.

    Raises:
        FleetError, SecretRefError: server, sending domain or one of their secrets is missing.
    """
    server = servers.get(connection, slot.server)
    bundle = Bundle.model_validate_json(message)
    domain = dkim_keys.signed_by(connection, domains.get(connection, bundle.dkim_domain), server.id)
    password = secret_refs.resolve(settings, server.smtp_password_ref) if server.smtp_password_ref else None
    job = Job(
        job_id=f"{send.ref}@{slot.folder}",
        send_id=send.id,
        campaign=send.campaign,
        edition=send.edition,
        server=slot.server,
        slot=slot.slot,
        dkim_selector=domain.dkim_selector,
        expires_at=send.expires_at.timestamp() if send.expires_at else None,
        smtp=SmtpServer(
            host=server.smtp_host,
            port=server.smtp_port,
            security=server.smtp_security,
            helo_name=f"{queue_name(send.id)}.queue.invalid" if server.mta_queues else server.helo_name,
            user=server.smtp_user,
            connections=server.connections,
            mta=server.mta,
            mta_log=server.mta_log,
            mta_spool=server.mta_spool,
            mta_queues=server.mta_queues,
            mta_command=server.mta_command,
        ),
        limits=limits_for(connection, send, slot),
        breaker=BreakerRules(replies=settings.breaker_replies, refused_share=settings.breaker_refused_share),
    )
    secrets = Secrets(
        dkim_key_pem=domains.dkim_private_key(settings, domain),
        token_key=send_token_key(settings.tokens(), send.id).hex(),
        smtp_password=password,
    )
    return job, secrets
