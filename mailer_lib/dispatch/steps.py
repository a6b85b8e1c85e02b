"""The steps of a send, in their order: what ``mailfleet send start`` and the DAG ``campaign_send`` both call.

Each is idempotent under (send, claim), takes and returns plain data (JSON), and leaves a sentence when it fails. The
table is in docs/architecture.md, "Steps of a send".
"""

import logging
from collections.abc import Callable
from typing import Any, TypedDict

from sqlalchemy import Engine, select

from mailer_lib.audience import criteria
from mailer_lib.audience import manifest as manifests
from mailer_lib.audience import snapshot as audience
from mailer_lib.audience.plan import (
    PLAN_FILE,
    ControlGroup,
    Exclude,
    FrequencyCap,
    Slice,
    SnapshotPlan,
    building_folder,
)
from mailer_lib.audience.sharing import shared_folder
from mailer_lib.database.engine import read
from mailer_lib.database.schema import provider_limits, snapshots
from mailer_lib.dispatch import approval, decision, erasure, sends
from mailer_lib.dispatch.books import Books, BooksError
from mailer_lib.dispatch.close import cancel_phase, close_send
from mailer_lib.dispatch.digest import present_digest
from mailer_lib.dispatch.plan import slots_for
from mailer_lib.dispatch.sends import SendRecord, current_send, held_send, process_claim, set_state
from mailer_lib.dispatch.slot_report import forget
from mailer_lib.dispatch.states import FINAL
from mailer_lib.dispatch.summary import ApprovalSummary, make_report, make_summary, newest_snapshot
from mailer_lib.dispatch.topup import already_sent
from mailer_lib.message.campaign import Campaign, get_campaign
from mailer_lib.message.compile import freeze_bundle, load_bundle
from mailer_lib.message.merge import used_fields
from mailer_lib.message.preflight import preflight
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store, store_path
from mailer_lib.terms import FindingLevel, SendMode, SendState, SnapshotState, UnknownPolicy

__all__ = [
    "PreflightError",
    "approval_summary",
    "build_all_recipients",
    "build_recipients",
    "check_message",
    "close_step",
    "decision_question",
    "fail_step",
    "freeze_message",
    "judge",
    "open_step",
    "plan_recipients",
    "process_claim",
    "publish_recipients",
    "record_approval",
    "record_rejection",
    "report",
    "skip_approval",
    "start_sending",
]

log = logging.getLogger(__name__)


class PreflightError(ValueError):
    """The message or its surroundings have an error; ``errors`` are sentences."""

    def __init__(self, send: str, errors: list[str]) -> None:
        super().__init__(f"{send} can't be sent: " + "; ".join(errors))
        self.errors = errors


class Opened(TypedDict):
    send_id: int
    send: str
    campaign: str
    edition: str
    mode: str
    claim: str
    state: str
    phase: int
    resuming: bool


class Planned(TypedDict):
    phase: int
    plan: str  # path of plan.json; "" when there is nothing to build
    ranges: int


class Published(TypedDict):
    phase: int
    frozen: int
    excluded: int
    shards: int
    manifest_sha256: str


class JudgeAnswer(TypedDict):
    verdict: str  # decision.Verdict


def open_step(
    engine: Engine,
    settings: Settings,
    *,
    campaign: str,
    edition: str,
    mode: SendMode | str,
    launched_by: str,
    claim: str,
    take_over: bool = False,
) -> Opened:
    """Claim the send; decide whether a phase goes on or a new one is frozen.

    Raises:
        CampaignError: unknown campaign, with near matches.
        ClaimedError: another execution is at work.
        SendError: edition and mode don't fit.
    """
    opened = sends.open_send(
        engine,
        settings,
        campaign,
        edition,
        SendMode(mode),
        launched_by=launched_by,
        claim=claim,
        take_over=take_over,
    )
    send = opened.send
    if opened.superseded:
        cancel_phase(engine, settings, send.id)
    return Opened(
        send_id=send.id,
        send=send.ref,
        campaign=send.campaign,
        edition=send.edition,
        mode=send.mode.value,
        claim=sends.fit_claim(claim),
        state=send.state.value,
        phase=opened.phase,
        resuming=opened.resuming,
    )


def freeze_message(engine: Engine, settings: Settings, send_id: int, claim: str) -> dict[str, Any]:
    """Freeze the content. What was approved, or has left in part, stands. Returns content_hash, variants, links."""
    held_send(engine, send_id, claim)
    bundle = freeze_bundle(engine, settings, send_id)
    return {
        "content_hash": bundle.content_hash,
        "variants": [variant.name for variant in bundle.variants],
        "links": len(bundle.links),
    }


def plan_recipients(engine: Engine, settings: Settings, send_id: int, claim: str) -> Planned:
    """Freeze "now" and the newest contact, and cut id ranges; nothing when this phase is frozen already."""
    send = held_send(engine, send_id, claim)
    if send.state not in (SendState.PLANNED, SendState.FREEZING):
        with read(engine) as connection:
            return Planned(phase=sends.phase_facts(connection, send_id).phase, plan="", ranges=0)
    set_state(engine, send_id, SendState.FREEZING, actor=send.launched_by or claim, claim=claim)
    with read(engine) as connection:
        campaign = get_campaign(connection, send.campaign)
    plan = _plan(engine, settings, send, campaign)
    return Planned(phase=plan.phase, plan=str(shared_folder(plan, settings) / PLAN_FILE), ranges=len(plan.ranges))


def _plan(engine: Engine, settings: Settings, send: SendRecord, campaign: Campaign) -> SnapshotPlan:
    attributes = used_fields(campaign)
    weights = variant_weights(settings, send, campaign)
    if send.mode == SendMode.TEST:
        if campaign.seed_list is None:
            raise sends.SendError(
                f"campaign {campaign.name} names no seed list to test with; set seed_list in its file and create it "
                "again"
            )
        return audience.plan_seed_snapshot(
            engine,
            settings,
            send.id,
            seed_list=campaign.seed_list,
            list_id=send.list_id,
            attributes=attributes,
            weights=weights,
        )
    with read(engine) as connection:
        stored = criteria.load(connection, campaign.criteria)
    return audience.plan_snapshot(
        engine,
        settings,
        send.id,
        rules=stored.rules,
        list_id=send.list_id,
        attributes=attributes,
        weights=weights,
        criteria_name=campaign.criteria,
        exclude=left_out(campaign),
        test_slice=slice_to_draw(engine, settings, send, campaign),
        alone=limited_providers(engine, send),
        zones=send.send_window.zones if send.send_window is not None else None,
    )


def limited_providers(engine: Engine, send: SendRecord) -> list[str]:
    """Mailbox providers that the sending pool has a limit for: their rows must not stand before those of others."""
    with read(engine) as connection:
        return list(
            connection.scalars(select(provider_limits.c.provider).where(provider_limits.c.pool_id == send.pool_id))
        )


def variant_weights(settings: Settings, send: SendRecord, campaign: Campaign) -> list[int]:
    """Of the message that stands, if any of it has left; when it was decided on a variant, all go to that one."""
    if send.content_hash is None or send.started_at is None:
        return [variant.weight for variant in campaign.effective_variants]
    frozen = [variant.weight for variant in load_bundle(settings, send.content_hash).variants]
    if send.decided_variant is None:
        return frozen
    return [int(number == send.decided_variant) for number in range(len(frozen))]


def slice_to_draw(engine: Engine, settings: Settings, send: SendRecord, campaign: Campaign) -> Slice | None:
    """The test slice of the phase to plan: none when it's decided, as an earlier phase drew it, or as the file says."""
    if send.decided_variant is not None:
        return None
    with read(engine) as connection:
        newest = newest_snapshot(connection, send.id)
    if newest is not None and send.started_at is not None:
        return manifests.load(store(settings) / newest.path).test_slice
    spec = campaign.test_slice
    if spec is None:
        return None
    return Slice(
        percent=spec.percent,
        people=spec.people,
        decide_within_s=None if spec.decide_within is None else spec.decide_within.total_seconds(),
        otherwise=spec.otherwise,
    )


def left_out(campaign: Campaign) -> Exclude:
    """What the campaign's file says about whom to leave out, as the audience takes it."""
    cap, control = campaign.frequency_cap, campaign.control_group
    return Exclude(
        lists=campaign.exclude.lists,
        criteria=campaign.exclude.criteria,
        frequency_cap=cap
        and FrequencyCap(messages=cap.messages, days=cap.days, campaign_class=campaign.campaign_class),
        control_group=control and ControlGroup(percent=control.percent, seed=control.seed or campaign.name),
    )


def build_recipients(  # noqa: PLR0917  # the DAG and the command line call every step alike
    engine: Engine, settings: Settings, send_id: int, claim: str, plan: str, index: int
) -> dict[str, int]:
    """Read one id range; any number of ranges at once, in any process. Returns index, rows, excluded."""
    held_send(engine, send_id, claim)
    done = audience.build_range(engine, settings, audience.load_plan(store_path(settings, plan)), index)
    return {"index": index, "rows": done.selected, "excluded": done.excluded}


def build_all_recipients(
    engine: Engine,
    settings: Settings,
    send_id: int,
    claim: str,
    plan: str,
    *,
    processes: int | None = None,
    progress: Callable[[int, int], object] = lambda built, total: None,
) -> None:
    """Every range, by so many processes of this machine (None: as many as suit it); the claim is looked at after each.

    ``progress`` hears how many ranges of how many are built.
    """

    def look(built: int, total: int) -> None:
        held_send(engine, send_id, claim)
        progress(built, total)

    audience.build_ranges(
        engine, settings, audience.load_plan(store_path(settings, plan)), processes=processes, progress=look
    )


def publish_recipients(
    engine: Engine,
    settings: Settings,
    send_id: int,
    claim: str,
    *,
    unknown_policy: UnknownPolicy | str = UnknownPolicy.LEAVE,
) -> Published:
    """Publish the snapshot, without those whom an earlier phase of this edition reached or may have reached."""
    send = held_send(engine, send_id, claim)
    with read(engine) as connection:
        building = connection.execute(
            select(snapshots).where(snapshots.c.send_id == send_id, snapshots.c.state == SnapshotState.BUILDING)
        ).one_or_none()
    if building is not None and send.state == SendState.FREEZING:
        already = already_sent(engine, settings, send_id, UnknownPolicy(unknown_policy))
        folder = building_folder((store(settings) / building.path).parent, building.phase)
        plan = audience.load_plan(folder / PLAN_FILE)
        audience.publish(engine, settings, plan, already)
    with read(engine) as connection:
        newest = newest_snapshot(connection, send_id)
    if newest is None:
        raise sends.SendError(f"{send.ref} has no frozen recipients; plan and build them first")
    if send.state == SendState.FREEZING:
        set_state(engine, send_id, SendState.AWAITING_APPROVAL, actor=send.launched_by or claim, claim=claim)
    manifest = manifests.load(store(settings) / newest.path)
    return Published(
        phase=newest.phase,
        frozen=manifest.counts.frozen,
        excluded=manifest.counts.excluded,
        shards=len(manifest.shards),
        manifest_sha256=newest.manifest_sha256,
    )


def check_message(engine: Engine, settings: Settings, send_id: int, claim: str) -> dict[str, list[str]]:
    """Pre-flight. Returns the warnings, as sentences.

    Raises:
        PreflightError: something that forbids sending.
    """
    send = held_send(engine, send_id, claim)
    findings = preflight(engine, settings, send.campaign, mode=send.mode)
    errors = [finding.text for finding in findings if finding.level is FindingLevel.ERROR]
    if errors:
        raise PreflightError(send.ref, errors)
    return {"warnings": [finding.text for finding in findings if finding.level is FindingLevel.WARNING]}


def approval_summary(
    engine: Engine, settings: Settings, send_id: int, claim: str, warnings: tuple[str, ...] | list[str] = ()
) -> ApprovalSummary:
    """What an approver decides on, with the digest that the approval is bound to. ``warnings`` of *check* are shown."""
    send = held_send(engine, send_id, claim)
    summary = make_summary(engine, settings, send, list(warnings))
    sends.keep_forecast(engine, send_id, summary["forecast"])
    return summary


def record_approval(
    engine: Engine, settings: Settings, send_id: int, claim: str, *, digest: str, approver: str
) -> dict[str, str]:
    """Raises:
    ApprovalError: what was shown isn't what would be sent now, or the approver may not approve.
    """
    held_send(engine, send_id, claim)
    approval.approve(engine, settings, send_id, digest=digest, approver=approver)
    return {"approved_by": approver}


def skip_approval(engine: Engine, settings: Settings, send_id: int, claim: str) -> dict[str, str]:
    """Go on without asking anybody; noted as such, and who launched the send."""
    held_send(engine, send_id, claim)
    with read(engine) as connection:
        digest = present_digest(connection, send_id)
    return {"approved_by": approval.waive(engine, send_id, digest=digest or "")}


def record_rejection(engine: Engine, settings: Settings, send_id: int, claim: str, *, by: str) -> dict[str, str]:
    """The send is REJECTED; *close* cancels its rows."""
    held_send(engine, send_id, claim)
    approval.reject(engine, send_id, by=by)
    return {"rejected_by": by}


def start_sending(engine: Engine, settings: Settings, send_id: int, claim: str) -> list[dict[str, Any]]:
    """The send is RUNNING from here on; returns the slots to run.

    Raises:
        ApprovalError: not approved, or the approval is void.
        SendError: no server of the sending pool may send.
    """
    send = held_send(engine, send_id, claim)
    if send.mode == SendMode.DRY_RUN:
        raise sends.SendError(f"{send.ref} is a dry run; nothing of it is ever sent")
    if send.state not in (SendState.RUNNING, SendState.JUDGING):
        approval.require_valid(engine, send_id)
    if not slots_for(engine, send_id):
        raise sends.SendError(
            f"no dispatch server of the sending pool of {send.campaign} is active or warming; see "
            "`mailfleet server list`"
        )
    set_state(engine, send_id, SendState.RUNNING, actor=send.launched_by or claim, claim=claim)
    slots = slots_for(engine, send_id, joining=True)
    return [{"server": s.server, "server_id": s.server_id, "slot": s.slot, "label": s.label} for s in slots]


def judge(engine: Engine, settings: Settings, send_id: int, claim: str) -> JudgeAnswer:
    """After the slots: whether the rest of a test slice waits, was decided on, or there is nothing to decide.

    The first call that finds the slice sent makes the send JUDGING. While it waits, call it again when
    ``decision.worth_judging``.
    """
    return JudgeAnswer(verdict=decision.look(engine, settings, held_send(engine, send_id, claim)).value)


def decision_question(engine: Engine, settings: Settings, send_id: int) -> str:
    """The figures at hand and how to decide, as markdown."""
    return decision.question(engine, settings, current_send(engine, send_id))


def close_step(engine: Engine, settings: Settings, send_id: int, claim: str) -> dict[str, Any]:
    """Write off what nobody may send, balance the books, decide the state, free the claim. Always call it at the end.

    Unbalanced books don't raise here: the state is ``failed`` and the reason names what doesn't agree.
    """
    send = current_send(engine, send_id)
    if not (send.claim is None and send.state in FINAL):  # closed by an earlier try of this step
        held_send(engine, send_id, claim)
    books = _close(engine, settings, send_id)
    sends.release(engine, send_id, claim)
    send = current_send(engine, send_id)
    if send.state not in (SendState.FAILED,):
        forget(engine, send_id)
        _finish_erasures(engine, settings, send_id)
    return {**books.as_dict(), "state": send.state.value, "reason": send.reason}


def _finish_erasures(engine: Engine, settings: Settings, send_id: int) -> None:
    """Who was erased while the send ran is blanked in its shards now."""
    for problem in erasure.finish(engine, settings, actor="close", send_id=send_id).problems:
        log.warning("an erased person may still be in a shard: %s; mend it and run `contacts erase --finish`", problem)


def _close(engine: Engine, settings: Settings, send_id: int) -> Books:
    try:
        return close_send(engine, settings, send_id)
    except BooksError as error:
        return error.books


def fail_step(engine: Engine, settings: Settings, send_id: int, claim: str, reason: str) -> None:
    """Mark the send FAILED for a reason that no step noted, and free its claim. A later trigger goes on with it."""
    send = held_send(engine, send_id, claim)
    if send.state not in FINAL:
        set_state(engine, send_id, SendState.FAILED, actor=send.launched_by or claim, reason=reason)
    sends.release(engine, send_id, claim)


def report(engine: Engine, settings: Settings, send_id: int) -> dict[str, Any]:
    """State, books, rates and the sentence why, for a person: send, state, ok, reason, books, markdown."""
    return make_report(engine, settings, current_send(engine, send_id))
