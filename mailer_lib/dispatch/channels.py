"""Which channel leads to a slot's job folder: the one that its server is stored with."""

from collections.abc import Iterator
from contextlib import contextmanager

from mailer_lib.dispatch.channel import Channel, ChannelError, LocalChannel
from mailer_lib.dispatch.plan import Slot
from mailer_lib.dispatch.sends import SendRecord
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.settings import Settings
from mailer_lib.terms import ChannelKind


@contextmanager
def open_channel(server: DispatchServer, settings: Settings, send: SendRecord, slot: Slot) -> Iterator[Channel]:
    """The channel, for as long as it is used.

    Raises:
        ChannelError: this release doesn't have the server's channel.
    """
    if server.channel is not ChannelKind.LOCAL:
        raise ChannelError(f"{server.name} is reached by the channel {server.channel}, which isn't there yet")
    folder = settings.jobs_dir / send.campaign / send.edition / slot.folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    yield LocalChannel(folder)
