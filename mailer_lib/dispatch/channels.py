"""Which channel leads to a slot's job folder: the one that its server is stored with."""

from collections.abc import Iterator
from contextlib import contextmanager

from mailer_lib.dispatch.channel import Channel, LocalChannel
from mailer_lib.dispatch.plan import Slot
from mailer_lib.dispatch.sends import SendRecord
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.settings import Settings
from mailer_lib.terms import ChannelKind


@contextmanager
def open_channel(server: DispatchServer, settings: Settings, send: SendRecord, slot: Slot) -> Iterator[Channel]:
    """The channel, for as long as it is used. Nothing is connected before the first call of it."""
    if server.channel is ChannelKind.SSH:
        from mailer_lib.dispatch.ssh_channel import SshChannel  # asyncssh takes a second of CPU to import
        from mailer_lib.dispatch.ssh_link import shared_link

        with shared_link(server, settings) as link:
            yield SshChannel(link, f"{send.campaign}/{send.edition}/{slot.folder}")
        return
    folder = settings.jobs_dir / send.campaign / send.edition / slot.folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    yield LocalChannel(folder)
