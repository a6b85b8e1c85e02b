"""One slot of a send: leases in, grants out, ledgers back, about once a second, until nothing is left for it.

Everything the loop knows it reads from the database and the job folder, so it may be killed at any moment and called
again, by any process of this machine, and two of them at once do no harm: the database's guards and the agent's lock
decide (docs/decisions/0602). The decisions are in ``slot_rules.py``; this module looks, acts and reports.
"""

import time
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Engine, func, select

from mailer_lib.agent.job import ControlFile, LeaseGrant, Limits, Status
from mailer_lib.contacts.consent import active_suppressions_since
from mailer_lib.database.audit import record
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import dispatch_servers, leases, sends, shards, snapshots
from mailer_lib.dispatch.agent_keeper import DISMISS_S, AgentFailedError, AgentKeeper
from mailer_lib.dispatch.caps import HAND_BACK_FROM, Cap, exhausted, least, room, sentence
from mailer_lib.dispatch.channel import Channel, ChannelUnreachableError
from mailer_lib.dispatch.channels import open_channel
from mailer_lib.dispatch.grant_counts import caps_of_server
from mailer_lib.dispatch.job_files import bundle_bytes, make_job
from mailer_lib.dispatch.lease import (
    Lease,
    LeaseLostError,
    extend_grant,
    hand_back,
    leases_of_slot,
    settle_lease,
    take_lease,
)
from mailer_lib.dispatch.lease_tracker import LeaseTracker
from mailer_lib.dispatch.over_quota import expire_beyond
from mailer_lib.dispatch.plan import Slot, limits_for
from mailer_lib.dispatch.provider_counts import caps_of_providers
from mailer_lib.dispatch.queue_listings import keep_listing
from mailer_lib.dispatch.recalling import RecallBooks, RecallReader
from mailer_lib.dispatch.sends import HEARTBEAT_S, ClaimLostError, SendRecord, get_send, heartbeat
from mailer_lib.dispatch.slot_report import ENDED_AFTER, holders, nobody_sends, say, shards_left, worth_a_look
from mailer_lib.dispatch.slot_rules import (
    RECALL_PATIENCE_S,
    Intent,
    SlotProgress,
    SlotReport,
    SlotState,
    intent,
    suppression_lines,
)
from mailer_lib.dispatch.streams import Stream, grants, wants
from mailer_lib.dispatch.zones import Zones
from mailer_lib.fleet import servers
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import Control, Outcome, OverQuota, ServerState, ShardState, SnapshotState

__all__ = ["SlotProgress", "SlotReport", "SlotState", "run_slot", "worth_a_look"]

TICK_S = 1.0
QUICK_TICK_S = 0.2  # while the agent runs dry, or starts
CONTROL_REFRESH_S = 30.0  # an agent ends when control.json grows old (job.idle_exit_s)
SAY_EVERY_S = 3.0
LIST_EVERY_S = 5.0  # the agent lists the MTA's queue every ten
RATE_WINDOW_S = 3.0
HAND_BACK_AWAY = timedelta(seconds=30)  # then others get what an unreachable server was never granted
DISMISS_PATIENCE_S = 30.0  # for a server that is away when the slot is through


def run_slot(
    engine: Engine,
    settings: Settings,
    send_id: int,
    slot: Slot,
    *,
    on_progress: Callable[[SlotProgress], object] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    hand_over: Callable[[], bool] = lambda: False,
    claim: str | None = None,
    stop_agent: bool = True,
    progress_every_s: float = 5.0,
    patience: timedelta = ENDED_AFTER,
) -> SlotReport:
    """Send what this slot can get of a send; returns when it gets no more (``SlotReport.state`` says why).

    Args:
        on_progress: called when the state changes, and every ``progress_every_s``.
        should_stop: asked a few times a second; true ends the loop (state LEFT): the agent finishes what is in flight
            and ends, rows never granted go back. With ``stop_agent`` False the agent is left running on its grant.
        hand_over: likewise; true ends the loop (state HANDED_OVER) for another call to go on with: the agent runs on.
        claim: of the execution this call belongs to: it is kept fresh, and when another takes it over the loop ends.
        patience: how long slots that ended may hold rows before this one stops waiting for them (state STRANDED).

    Raises:
        SendError, FleetError, SecretRefError: message, server, domain or a secret is missing.
        LedgerError, ChannelError: a file is damaged, or the server refuses us.
    """
    with read(engine) as connection:
        server = servers.get(connection, slot.server)
        send = get_send(connection, send_id)
    with open_channel(server, settings, send, slot) as channel:
        runner = SlotRunner(engine, settings, send, slot, channel, claim=claim)
        runner.patience = patience
        return runner.run(on_progress, should_stop, hand_over, stop_agent=stop_agent, progress_every_s=progress_every_s)


@dataclass(frozen=True)
class Away:
    """A server that can't be reached."""

    since: datetime
    why: str

    @property
    def sentence(self) -> str:
        return f"unreachable since {self.since:%H:%M:%S} UTC ({self.why}): its agent sends what it was granted, no more"


@dataclass(frozen=True)
class View:
    """What one look at the database says."""

    send: SendRecord
    wish: Intent
    leases: list[Lease]
    limits: Limits
    open_shards: int  # that a slot could take now
    open_providers: frozenset[str | None]  # of them
    shut_shards: int  # that wait for the send window of their time zone
    unsettled_shards: int  # but those that are parked
    parked_shards: int  # that wait for a decision
    caps: tuple[Cap, ...]  # of the server
    provider_caps: Mapping[str, tuple[Cap, ...]]  # of the sending pool
    zones: Zones
    at: datetime

    @property
    def provider_rooms(self) -> dict[str, int]:
        """Rows that may still be granted for each provider that has a cap."""
        return {provider: rows for provider, caps in self.provider_caps.items() if (rows := room(caps)) is not None}

    def used_up(self, provider: str | None) -> Cap | None:
        """The cap that rows of this provider wait for: the server's, or the provider's own."""
        return exhausted((*self.caps, *self.provider_caps.get(provider or "", ())))

    @property
    def kept_for(self) -> Cap | None:
        """The warm-up quota whose next day the slot keeps its rows for, by the send's setting."""
        quotas = [cap for cap in self.caps if cap.warm_up and not cap.left]
        waits = self.send.over_quota is OverQuota.WAITS and self.wish.ending is None
        return quotas[0] if quotas and waits and quotas[0].ends_at - self.at >= HAND_BACK_FROM else None


def _unix(at: datetime | None) -> float | None:
    return at.timestamp() if at is not None else None


class SlotRunner:
    """The state of one call of ``run_slot``."""

    patience = ENDED_AFTER

    def __init__(
        self, engine: Engine, settings: Settings, send: SendRecord, slot: Slot, channel: Channel, *, claim: str | None
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.store = store(settings)
        self.send_id = send.id
        self.slot = slot
        self.channel = channel
        self.claim = claim
        self.keeper = AgentKeeper(channel, slot.label)
        self.recalls = RecallReader(RecallBooks(engine, settings, send.id, send.ref, f"agent:{slot.label}"), channel)
        self.send_key = settings.identity().send_key(send.campaign, send.edition)
        self.trackers: dict[int, LeaseTracker] = {}
        self.rates: dict[str | None, float] = {}  # by stream
        self.settled = 0
        self._ready = False  # the job folder is this send's
        self._suppressed: set[str] = set()
        self._suppressions_at: datetime | None = None
        self._control: ControlFile | None = None
        self._control_at = 0.0
        self._pause_generation = 0  # of the control file that asked for the pause
        self._heartbeat_at = 0.0
        self._said_at = 0.0
        self._listed_at = 0.0
        self._said: SlotState | None = None
        self._held: dict[str, str] = {}  # providers that the breaker leaves alone, with its reason
        self._recent: list[tuple[float, int, str | None]] = []
        self._away: Away | None = None

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(
        self,
        on_progress: Callable[[SlotProgress], object],
        should_stop: Callable[[], bool],
        hand_over: Callable[[], bool] = lambda: False,
        *,
        stop_agent: bool = True,
        progress_every_s: float = 5.0,
    ) -> SlotReport:
        reported: tuple[float, SlotState | None] = (0.0, None)
        self._say(SlotProgress(self.slot.label, SlotState.STARTING), force=True)
        while True:
            if should_stop():
                return self._leave("asked to stop", stop_agent=stop_agent)
            if hand_over():
                return self._end(SlotState.HANDED_OVER, "another process goes on with it")
            was_away = self._away is not None
            try:
                self._keep_claim()
                view = self._look()
                ended = self._tick(view)
                if ended is not None:
                    return ended
                progress = self._progress(view)
                self._note_held(view)
                self._away = None
            except ChannelUnreachableError as error:
                ended = self._unreachable(error)
                if ended is not None:
                    return ended
                assert self._away is not None
                progress = SlotProgress(self.slot.label, SlotState.WAITING, self._away.sentence, self.settled)
            except ClaimLostError as error:
                return self._leave(str(error), stop_agent=False)
            except LeaseLostError:  # another process changed what we looked at: look again
                time.sleep(QUICK_TICK_S)
                continue
            except AgentFailedError as error:
                self._give_back()
                return self._end(SlotState.FAILED, str(error))
            turned = (self._away is not None) != was_away  # both are "waiting", perhaps
            self._say(progress, force=turned)
            if turned or progress.state != reported[1] or time.monotonic() - reported[0] >= progress_every_s:
                on_progress(progress)
                reported = (time.monotonic(), progress.state)
            self._sleep(view, lambda: should_stop() or hand_over())

    def _unreachable(self, error: ChannelUnreachableError) -> SlotReport | None:
        """The server is away: its agent sends what it was granted, and no more. Others take what it wasn't. Returns the
        report when there is nothing to wait for."""
        self._away = Away(now(), str(error)) if self._away is None else replace(self._away, why=str(error))
        view = self._look()
        self._renew_trackers(view)
        if now() - self._away.since >= HAND_BACK_AWAY:
            self._give_back()
        if self.trackers:
            return None
        if view.wish.ending is not None:
            return self._end(view.wish.ending, view.wish.reason)
        return None if view.unsettled_shards else self._end(SlotState.DONE, self._away.sentence)

    def _tick(self, view: View) -> SlotReport | None:
        """One round. Returns the report when the slot is at its end."""
        if view.wish.ending is SlotState.FENCED:
            with suppress(ChannelUnreachableError):
                self.keeper.end()
            return self._end(SlotState.FENCED, f"{view.wish.reason}; `mailfleet send lose-server` frees its rows")
        self._renew_trackers(view)
        if self.trackers:
            self._prepare(view)
            self._push_suppressions(view)
            self._put_shards()
            self._push_control(view)  # before ledgers are read: on a busy disk that took 3 s, and a pause waited for it
            self._sync(view)
            self._settle(view)
            status = self._fresh_status()
            if status is not None and status.recalled:
                self.recalls.sync()
            self._keep_listing(status)
            if self._may_rest(view):
                self.keeper.end()
                return self._end(SlotState.IDLE, view.wish.reason)
            kept_for = view.kept_for
            if kept_for is not None and self.trackers and all(t.is_settled for t in self.trackers.values()):
                self.keeper.end()
                return self._end(SlotState.IDLE, sentence(kept_for))
        if view.wish.may_take:
            self.channel.is_alive()  # a server that is away gets no rows
            self._take(view)
            self._grant(view)
        if not self.trackers:
            return self._nothing_at_hand()
        self._put_shards()
        self._push_control(view)
        if view.wish.agent is not Control.PAUSE or self.channel.is_alive():
            self.keeper.ensure()
        return None

    def _may_rest(self, view: View) -> bool:
        """Whether to end here, granted rows and all, until the send window opens: it must not hold a worker so long."""
        opens_at = view.zones.next_opening if view.wish.waits else None
        rests = opens_at is not None and opens_at - view.at >= HAND_BACK_FROM
        return rests and self._has_paused(self._fresh_status())

    def _look(self) -> View:
        at = now()
        with read(self.engine) as connection:
            send = get_send(connection, self.send_id)
            server_state = connection.scalar(
                select(dispatch_servers.c.state).where(dispatch_servers.c.id == self.slot.server_id)
            )
            left = shards_left(connection, self.send_id, send.decided_variant)
            held = leases_of_slot(connection, self.send_id, self.slot.server_id, self.slot.slot)
            limits = limits_for(connection, send, self.slot)
            caps = caps_of_server(connection, self.slot.server_id, at)
            provider_caps = caps_of_providers(connection, send.pool_id, at)
        expired = send.expires_at is not None and send.expires_at <= at
        zones = Zones.of(send.send_window, {shard.zone for shard in left if not shard.parked}, at)
        server = ServerState(server_state) if server_state is not None else ServerState.RETIRED
        return View(
            send=send,
            wish=intent(send.state, send.control, server, expired=expired, window_shut=zones.why_shut()),
            leases=held,
            limits=limits,
            open_shards=sum(s.count for s in left if s.is_open and not s.parked and zones.is_open(s.zone)),
            open_providers=frozenset(s.provider for s in left if s.is_open and not s.parked and zones.is_open(s.zone)),
            unsettled_shards=sum(s.count for s in left if not s.parked),
            parked_shards=sum(s.count for s in left if s.parked),
            caps=caps,
            provider_caps=provider_caps,
            shut_shards=sum(s.count for s in left if s.is_open and not s.parked and not zones.is_open(s.zone)),
            zones=zones,
            at=at,
        )

    def _keep_claim(self) -> None:
        if self.claim is not None and time.monotonic() - self._heartbeat_at >= HEARTBEAT_S:
            heartbeat(self.engine, self.send_id, self.claim)
            self._heartbeat_at = time.monotonic()

    def _renew_trackers(self, view: View) -> None:
        held = {lease.id: lease for lease in view.leases}
        self.trackers = {
            lease_id: self.trackers.get(lease_id) or LeaseTracker(self.store, lease) for lease_id, lease in held.items()
        }
        for lease_id, lease in held.items():
            self.trackers[lease_id].renew(lease)

    # --- towards the agent --------------------------------------------------------------------------------------------

    def _prepare(self, view: View) -> None:
        """Make the job folder, or find that it is the right one. An agent of another message is seen out first."""
        if self._ready and self.channel.is_alive():
            return
        message = bundle_bytes(self.settings, view.send)
        if self.channel.is_alive():
            if self.channel.message() == message:
                self._attach()
                return
            self.keeper.end()
        with read(self.engine) as connection:
            job, secrets = make_job(connection, self.settings, view.send, self.slot, message)
        self.channel.prepare(job, message, secrets)
        self._attach()

    def _attach(self) -> None:
        if not self._ready:
            self._suppressed = self.channel.suppressions()
            self._control = self.channel.read_control()
        self._ready = True

    def _push_suppressions(self, view: View) -> None:
        """Who left since the snapshot was frozen, each once."""
        asked_at = now()
        with read(self.engine) as connection:
            since = self._suppressions_at or connection.scalar(
                select(func.min(snapshots.c.as_of)).where(
                    snapshots.c.send_id == self.send_id,
                    snapshots.c.state == SnapshotState.PUBLISHED,
                    snapshots.c.phase.in_([tracker.lease.phase for tracker in self.trackers.values()]),
                )
            )
            assert since is not None
            hashes, domains = active_suppressions_since(connection, since=since, list_id=view.send.list_id)
        lines = suppression_lines(hashes, domains, self.send_key)
        fresh = sorted(lines - self._suppressed)
        if fresh:
            self.channel.append_suppressions(fresh)
            self._suppressed |= lines
        self._suppressions_at = asked_at

    def _put_shards(self) -> None:
        """Before control.json names them. Of every lease, not only of new ones: an earlier call may have been killed
        between taking a lease and copying its shard."""
        for tracker in self.trackers.values():
            self.channel.put_shard(tracker.shard_name, tracker.shard_file)

    def _push_control(self, view: View, *, complete: bool = False) -> None:
        grants = tuple(
            LeaseGrant(
                shard=t.lease.shard,
                phase=t.lease.phase,
                epoch=t.lease.epoch,
                rows=t.lease.shard_rows,
                first_row=t.lease.first_row,
                granted_through=t.lease.granted_through,
                shard_file=f"shards/{t.shard_name}",
                sha256=t.lease.sha256,
                rest_variant=t.lease.decided_variant,
                window_closes_at=_unix(view.zones.closes_at(t.lease.zone)) if view.zones.are_asked else None,
            )
            for t in self.trackers.values()
        )
        wanted = ControlFile(
            generation=self._control.generation if self._control else 0,
            control=view.wish.agent,
            limits=view.limits,
            expires_at=view.send.expires_at.timestamp() if view.send.expires_at else None,
            window_closes_at=_unix(view.zones.all_close_at),
            leases=grants,
            keep_queue=view.wish.agent is Control.STOP and not view.wish.recalls,
            complete=complete,
        )
        aged = time.monotonic() - self._control_at >= CONTROL_REFRESH_S
        if wanted == self._control and not aged:
            return
        wanted = wanted.model_copy(update={"generation": wanted.generation + 1})
        self.channel.write_control(wanted)
        if wanted.control is Control.PAUSE and (self._control is None or self._control.control is not Control.PAUSE):
            self._pause_generation = wanted.generation
        self._control = wanted
        self._control_at = time.monotonic()

    # --- leases -------------------------------------------------------------------------------------------------------

    def _take(self, view: View) -> None:
        if room(view.caps) == 0:
            return
        for provider in sorted(view.open_providers, key=lambda name: name or ""):
            if view.used_up(provider) is not None:
                continue
            trackers = self._of_stream(view, provider)
            grantable = [tracker.lease.grantable for tracker in trackers]
            rate = self._stream(view, provider).rate
            while wants(grantable, len(grantable), rate, self.settings.grant_s):
                lease = take_lease(
                    self.engine,
                    self.send_id,
                    self.slot.server_id,
                    self.slot.slot,
                    zones=view.zones.open,
                    providers=[provider],
                )
                if lease is None:
                    break
                self.trackers[lease.id] = LeaseTracker(self.store, lease)
                self._prepare(view)
                self._push_suppressions(view)  # before anything of it is granted
                grantable.append(lease.grantable)

    def _grant(self, view: View) -> None:
        """Top up the grants of each stream, oldest lease first, so that what can be sent covers about ``grant_s``."""
        grant_s, budget, status = self.settings.grant_s, room(view.caps), self._fresh_status()
        rooms = view.provider_rooms
        has_begun = self.settled > 0 or (status is not None and status.dry)
        for provider in sorted({t.lease.provider for t in self.trackers.values()}, key=lambda name: name or ""):
            trackers = self._of_stream(view, provider)
            if not any(tracker.lease.grantable for tracker in trackers):
                continue
            held = [tracker.held(view.limits.provider_per_s, grant_s, rooms) for tracker in trackers]
            stream, left = self._stream(view, provider), least(budget, rooms.get(provider or ""))
            rate = self.rates[provider] = stream.next_rate(held, has_begun=has_begun, has_room=left != 0)
            for tracker, wanted in zip(trackers, grants(held, rate, grant_s, left), strict=True):
                first, through = tracker.lease.granted_through, tracker.capped(wanted, rooms)
                if through > first:
                    mix = tracker.providers_of(first, through) if rooms else None
                    extend_grant(self.engine, tracker.lease, through, mix)
                    budget = None if budget is None else budget - (through - first)
                    rooms = {name: rows - mix[name] for name, rows in rooms.items()} if mix else rooms
                    self._renew_one(tracker)

    def _stream(self, view: View, provider: str | None) -> Stream:
        limits = view.limits
        return Stream.of(
            provider, limits.per_s, limits.provider_per_s, self._per_s({provider}), self.rates.get(provider)
        )

    def _of_stream(self, view: View, provider: str | None) -> list[LeaseTracker]:
        """Leases of one stream whose send window is open, oldest first."""
        leases_ = [t for _, t in sorted(self.trackers.items()) if t.lease.provider == provider]
        return [tracker for tracker in leases_ if view.zones.is_open(tracker.lease.zone)]

    def _renew_one(self, tracker: LeaseTracker) -> None:
        with read(self.engine) as connection:
            for lease in leases_of_slot(connection, self.send_id, self.slot.server_id, self.slot.slot):
                if lease.id == tracker.lease.id:
                    tracker.renew(lease)

    def _sync(self, view: View) -> None:
        for tracker in self.trackers.values():
            while True:
                before = tracker.lease.ledger_bytes
                settled = tracker.sync(self.engine, self.channel, f"send:{view.send.ref}")
                self._renew_one(tracker)
                if settled:
                    self.settled += settled
                    self._recent.append((time.monotonic(), settled, tracker.lease.provider))
                    self.keeper.made_progress()
                if tracker.lease.ledger_bytes == before or not settled:
                    break

    def _settle(self, view: View) -> None:
        """End the leases that are through. When the slot winds down, or a cap is used up for longer, give back what was
        never granted first: servers with room take it. So when the window of a lease's time zone shuts: it is taken
        again, by whoever is there, when it opens."""
        for lease_id, tracker in list(self.trackers.items()):
            cap = view.used_up(tracker.lease.provider)
            waits_long = cap is not None and cap.ends_at - view.at >= HAND_BACK_FROM and view.kept_for is None
            gives_back = view.wish.ending is not None or waits_long
            whole = tracker.lease.granted_through == tracker.lease.free_through
            if (gives_back or not view.zones.is_open(tracker.lease.zone)) and not whole:
                hand_back(self.engine, tracker.lease)
            if tracker.is_settled and (whole or view.wish.ending is not None or self._was_handed_back(tracker)):
                tracker.kept.finish()
                settle_lease(self.engine, lease_id)
                del self.trackers[lease_id]

    def _was_handed_back(self, tracker: LeaseTracker) -> bool:
        lease = tracker.lease
        with read(self.engine) as connection:
            shard = connection.execute(
                select(shards.c.state, shards.c.epoch).where(shards.c.id == lease.shard_id)
            ).one()
        return bool(shard.epoch != lease.epoch or shard.state != ShardState.LEASED)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _nothing_at_hand(self) -> SlotReport:
        """No lease, and none to be had: how this call ends."""
        view = self._look()  # leases were settled since the last look
        if view.wish.ending is SlotState.IDLE:
            return self._wait_to_join(view)
        if view.wish.ending is not None:
            self._dismiss(view)
            return self._end(view.wish.ending, view.wish.reason)
        if not view.unsettled_shards:
            self._dismiss(view)
            if view.parked_shards:
                return self._end(SlotState.JUDGING, "the test slice is through; the rest waits for a decision")
            return self._end(SlotState.DONE)
        self._pass_on(view)
        if view.wish.agent is Control.PAUSE:
            return self._end(SlotState.IDLE, view.wish.reason)
        waited_for = [view.used_up(provider) for provider in view.open_providers]
        cap = min((cap for cap in waited_for if cap is not None), key=lambda cap: cap.ends_at, default=None)
        if cap is not None and None not in waited_for:
            if expire_beyond(self.engine, self.settings, self.send_id):
                return self._nothing_at_hand()
            return self._end(SlotState.IDLE, sentence(cap))
        if view.shut_shards and not view.open_shards:
            return self._end(SlotState.IDLE, view.zones.why_some_wait())
        with read(self.engine) as connection:
            rested = view.zones.were_shut or view.send.over_quota is OverQuota.WAITS
            working, gone = holders(connection, self.send_id, ended_after=self.patience, rested=rested)
        if working or view.open_shards or not gone:
            return self._end(SlotState.IDLE, f"the rows that are left are with {', '.join(working) or 'others'}")
        self._dismiss(view)
        held = ", ".join(gone)
        return self._end(
            SlotState.STRANDED, f"the rows that are left are with {held}, which ended; trigger the send again"
        )

    def _wait_to_join(self, view: View) -> SlotReport:
        """Of a standby server: idle as long as the send goes on without it. One that was never used isn't asked for an
        agent: there may be no machine yet."""
        if self._ready:
            self._dismiss(view)
        if not view.unsettled_shards:
            return self._end(SlotState.JUDGING if view.parked_shards else SlotState.DONE)
        with read(self.engine) as connection:
            alone = nobody_sends(connection, self.send_id, ended_after=self.patience)
        if alone:
            return self._end(SlotState.DRAINED, f"{view.wish.reason}, and the slots that were sending have ended")
        return self._end(SlotState.IDLE, view.wish.reason)

    def _leave(self, reason: str, *, stop_agent: bool) -> SlotReport:
        """End early. A stopped agent has nothing in flight any more: all that it knew is in the ledger read last."""
        if stop_agent:
            try:
                self.keeper.end()
                view = self._look()
                self._renew_trackers(view)
                self._sync(view)
                self._give_back()
                for lease_id, tracker in list(self.trackers.items()):
                    if tracker.is_settled:
                        tracker.kept.finish()
                        settle_lease(self.engine, lease_id)
            except LeaseLostError:
                pass  # another process goes on with this slot
            except ChannelUnreachableError as error:
                self._give_back()
                reason += f"; {error}. Its agent ends by itself when its grant is used up"
        return self._end(SlotState.LEFT, reason)

    def _give_back(self) -> None:
        for tracker in self.trackers.values():
            hand_back(self.engine, tracker.lease)

    def _keep_listing(self, status: Status | None) -> None:
        """What lies in the MTA's queue, for the day on which the server is lost."""
        if status is not None and time.monotonic() - self._listed_at >= LIST_EVERY_S:
            keep_listing(self.settings, self.send_id, self.slot, self.channel)
            self._listed_at = time.monotonic()

    def _pass_on(self, view: View) -> None:
        """An agent without rows hears of a pause and its end as well: it holds the MTA's queue of the send. One that
        has ended is started for that, and ends by itself."""
        last = self.channel.read_control()
        if last is None or last.control is view.wish.agent:
            return
        if self.channel.is_alive():
            self._attach()
            self._push_control(view)
        elif Control.PAUSE in (last.control, view.wish.agent):
            self._ready = False
            self._prepare(view)
            self._push_control(view)
            self.channel.start()

    def _dismiss(self, view: View) -> None:
        """The slot is through: its agent ends, and the job folder keeps neither secrets nor recipients. A server that
        is away is waited for a while."""
        give_up_at = time.monotonic() + DISMISS_PATIENCE_S
        while True:
            try:
                return self._see_out(view)
            except ChannelUnreachableError as error:
                if time.monotonic() < give_up_at:
                    time.sleep(TICK_S)
                    continue
                with write(self.engine) as connection:
                    detail = {"server": self.slot.server, "why": str(error)}
                    record(connection, f"slot:{self.slot.label}", "job.not-cleared", f"send:{view.send.ref}", detail)
                return None

    def _see_out(self, view: View) -> None:
        """An agent that ended before is started once more when the MTA's queue is to be emptied, or was held."""
        last = self.channel.read_control()
        if last is not None and not self.channel.is_alive() and (view.wish.recalls or last.control is Control.PAUSE):
            self._ready = False
            self._prepare(view)
            self._push_control(view, complete=True)
            self.channel.start()
        if self.channel.is_alive():
            self._attach()
            patience_s = RECALL_PATIENCE_S if view.wish.recalls else DISMISS_S
            self.keeper.end(lambda: self._push_control(view, complete=True), patience_s)
        self.recalls.sync()
        keep_listing(self.settings, self.send_id, self.slot, self.channel)
        self.channel.clear()

    def _end(self, state: SlotState, reason: str = "") -> SlotReport:
        with read(self.engine) as connection:
            injected = connection.scalar(
                select(func.sum(leases.c.injected)).where(
                    leases.c.send_id == self.send_id,
                    leases.c.server_id == self.slot.server_id,
                    leases.c.slot == self.slot.slot,
                )
            )
        self._say(SlotProgress(self.slot.label, state, reason, self.settled, int(injected or 0)), force=True)
        return SlotReport(self.slot.label, state, reason, int(injected or 0), self.settled)

    # --- words --------------------------------------------------------------------------------------------------------

    def _fresh_status(self) -> Status | None:
        status = self.channel.status()
        return status if status is not None and time.time() - status.at < 5 else None

    def _per_s(self, streams: Container[str | None] | None = None) -> float:
        """Rows settled a second, over the last few; of these streams, or of all."""
        since = time.monotonic() - RATE_WINDOW_S
        self._recent = [word for word in self._recent if word[0] >= since]
        return sum(rows for _, rows, of in self._recent if streams is None or of in streams) / RATE_WINDOW_S

    def _progress(self, view: View) -> SlotProgress:
        status = self._fresh_status()
        if view.wish.agent is Control.PAUSE and self._has_paused(status):
            state, reason = (SlotState.WAITING if view.wish.waits else SlotState.PAUSED), view.wish.reason
        elif view.wish.agent is Control.PAUSE:
            state, reason = SlotState.WAITING, "pausing: what is on its way is finished first"
        elif status is None:
            state, reason = SlotState.STARTING, ""
        else:
            state = SlotState.WAITING if status.state == "waiting" else SlotState.SENDING
            cap = exhausted(view.caps) if status.dry else None
            held_back = [cap for caps in view.provider_caps.values() if (cap := exhausted(caps)) is not None]
            reason = "; ".join(sentence(one) for one in ([cap] if cap is not None else held_back)) or status.reason
        return SlotProgress(
            label=self.slot.label,
            state=state,
            reason=reason,
            settled=self.settled,
            injected=sum(t.lease.counts.get(Outcome.INJECTED, 0) for t in self.trackers.values()),
            per_s=self._per_s(),
            in_flight=status.in_flight if status else 0,
            deferred=sum(t.deferred for t in self.trackers.values()),
            leases=len(self.trackers),
        )

    def _note_held(self, view: View) -> None:
        """Audit each provider that the agent's breaker begins to leave alone."""
        status = self._fresh_status()
        held = {h.provider: h.reason for h in status.held} if status is not None else self._held
        for provider in held.keys() - self._held.keys():
            detail = {"server": self.slot.server, "provider": provider, "reason": held[provider]}
            with write(self.engine) as connection:
                record(connection, f"agent:{self.slot.label}", "provider.held", f"send:{view.send.ref}", detail)
        self._held = held

    def _has_paused(self, status: Status | None) -> bool:
        """Whether nothing more leaves: the agent has read of the pause, and nothing is on its way."""
        if status is None:
            return not self.channel.is_alive()
        return status.state == "paused" and status.generation >= self._pause_generation and status.in_flight == 0

    def _say(self, progress: SlotProgress, *, force: bool = False) -> None:
        at = time.monotonic()
        if force or progress.state != self._said or at - self._said_at >= SAY_EVERY_S:
            say(self.engine, self.send_id, self.slot, progress)
            self._said, self._said_at = progress.state, at

    def _sleep(self, view: View, should_stop: Callable[[], bool]) -> None:
        """Until the next look: soon when the agent waits for rows or is starting, at once when an operator said
        something, a second otherwise."""
        quick = self._away is None and ((status := self._status()) is None or _wants_rows(status))
        until = time.monotonic() + (QUICK_TICK_S if quick else TICK_S)
        while (left := until - time.monotonic()) > 0 and not should_stop():
            time.sleep(min(left, QUICK_TICK_S))
            if self._away is None and (fresh := self._status()) is not None and _wants_rows(fresh):
                return
            if self._has_news(view):
                return

    def _has_news(self, view: View) -> bool:
        """Whether an operator said something since that look."""
        with read(self.engine) as connection:
            said = connection.execute(
                select(sends.c.state, sends.c.control, sends.c.pace_per_s).where(sends.c.id == self.send_id)
            ).one()
        return tuple(said) != (view.send.state, view.send.control, view.send.pace_per_s)

    def _status(self) -> Status | None:
        """For the pace of the loop only: the next round finds out that a server is away."""
        try:
            return self._fresh_status()
        except ChannelUnreachableError:
            return None


def _wants_rows(status: Status) -> bool:
    return status.dry and status.state != "paused"
