"""The rest of the world that a real send needs: message, sending domain, keys, and servers whose MTA is a sink."""

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from sqlalchemy import update

from mailer_lib.database.engine import write
from mailer_lib.database.schema import dispatch_servers, sends
from mailer_lib.dispatch.plan import Slot
from mailer_lib.dispatch.slot import SlotProgress, SlotReport, run_slot
from mailer_lib.fleet import domains
from mailer_lib.message.bundle import Bundle, BundleVariant, Mailbox
from mailer_lib.message.compile import store_bundle
from mailer_lib.sink.process import SinkProcess
from tests.dispatch.world import World

DOMAIN = "news.fjordfern.example"


def bundle(world: World, send_id: int, edition: str) -> Bundle:
    return Bundle(
        campaign=world.campaign,
        edition=edition,
        send_id=send_id,
        list_name="newsletter",
        list_title="Fjord & Fern News",
        sender=Mailbox(name="Fjord & Fern", address=f"news@{DOMAIN}"),
        dkim_domain=DOMAIN,
        dkim_selector="mf1",
        return_path_domain=f"bounce.{DOMAIN}",
        tracking_url="http://127.0.0.1:8025",
        variants=tuple(
            BundleVariant(
                name=name,
                weight=1,
                subject=f"{name}: hello {{{{ contact.given_name }}}}",
                html="<p>Hello</p>",
                text="Hello",
            )
            for name in ("A", "B")
        ),
    )


def equip(world: World, sink: SinkProcess) -> None:
    """Every server hands over to this sink, which can settle doubts by its log."""
    with write(world.engine) as connection:
        domains.add(connection, world.settings, DOMAIN, actor="test")
        connection.execute(
            update(dispatch_servers).values(
                smtp_host="127.0.0.1", smtp_port=sink.port, mta="sink", mta_log=str(sink.mainlog)
            )
        )


def freeze(world: World, send_id: int, edition: str = "1") -> None:
    made = bundle(world, send_id, edition)
    store_bundle(world.settings, made)
    with write(world.engine) as connection:
        connection.execute(update(sends).where(sends.c.id == send_id).values(content_hash=made.content_hash))


def ready_send(world: World, sizes: list[int], *, edition: str = "1", **values: object) -> int:
    """A running send with frozen message and recipients."""
    send_id = world.send(edition=edition, **values)
    world.publish(send_id, sizes)
    freeze(world, send_id, edition)
    return send_id


def received(sink: SinkProcess) -> int:
    return sum(1 for _ in (sink.maildir / "new").iterdir())


def job_folder(world: World, slot: Slot, edition: str = "1") -> Path:
    return world.settings.jobs_dir / world.campaign / edition / slot.folder


class Running:
    """``run_slot`` in a thread, and what it says."""

    def __init__(self, world: World, send_id: int, slot: Slot, **options: object) -> None:
        self.heard: list[SlotProgress] = []
        self.stop = threading.Event()
        self._report: SlotReport | None = None
        self._error: BaseException | None = None
        self._changed = threading.Condition()

        def hear(progress: SlotProgress) -> None:
            with self._changed:
                self.heard.append(progress)
                self._changed.notify_all()

        def work() -> None:
            try:
                self._report = run_slot(
                    world.engine,
                    world.settings,
                    send_id,
                    slot,
                    on_progress=hear,
                    should_stop=self.stop.is_set,
                    progress_every_s=0.2,
                    patience=timedelta(seconds=1),
                    **options,  # type: ignore[arg-type]
                )
            except BaseException as error:  # shown by report()
                self._error = error
            with self._changed:
                self._changed.notify_all()

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

    def until(self, met: Callable[[SlotProgress], bool]) -> SlotProgress:
        """Wait for a word of the slot that meets the condition, or fail when it ended before."""
        seen = 0
        with self._changed:
            while True:
                while seen < len(self.heard):
                    if met(self.heard[seen]):
                        return self.heard[seen]
                    seen += 1
                if not self.thread.is_alive() or self._report is not None or self._error is not None:
                    raise AssertionError(f"the slot ended: {self._report or self._error!r}")
                self._changed.wait(0.5)

    def report(self) -> SlotReport:
        self.thread.join(120)
        assert not self.thread.is_alive(), "the slot doesn't end"
        if self._error is not None:
            raise self._error
        assert self._report is not None
        return self._report
