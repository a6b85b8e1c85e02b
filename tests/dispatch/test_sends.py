"""Opening, claiming and approving sends, on both databases."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
from sqlalchemy import update

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import audit_log, campaigns, sends, shards, snapshots
from mailer_lib.dispatch import approval, control
from mailer_lib.dispatch.lease import take_lease
from mailer_lib.dispatch.sends import (
    CLAIM_CHARS,
    ClaimedError,
    ClaimLostError,
    OpenedSend,
    SendError,
    find_send,
    fit_claim,
    heartbeat,
    held_send,
    holder_is_gone,
    open_send,
    parse_ref,
    process_claim,
    release,
    set_state,
)
from mailer_lib.message.campaign import CampaignError
from mailer_lib.settings import Settings
from mailer_lib.terms import Control, SendMode, SendState, ShardState
from tests.dispatch.world import World, definition


def opened(
    world: World, claim: str = "airflow:one", *, edition: str = "1", mode: SendMode = SendMode.SEND, **more: bool
) -> OpenedSend:
    return open_send(
        world.engine, world.settings, world.campaign, edition, mode, launched_by="ann", claim=claim, **more
    )


def change(world: World, send_id: int, **values: object) -> None:
    with write(world.engine) as connection:
        connection.execute(update(sends).where(sends.c.id == send_id).values(**values))


def settle_all(world: World, send_id: int) -> None:
    with write(world.engine) as connection:
        connection.execute(update(shards).where(shards.c.send_id == send_id).values(state=ShardState.SETTLED))


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_new_send_is_planned_and_claimed(world: World) -> None:
    made = opened(world)
    assert (made.send.ref, made.send.state, made.send.claim) == ("spring-sale#1", SendState.PLANNED, "airflow:one")
    assert (made.phase, made.resuming, made.superseded) == (1, False, False)
    with read(world.engine) as connection:
        assert [row.action for row in connection.execute(audit_log.select())] == ["send.open"]


def test_its_time_is_the_campaigns(sqlite_world: World) -> None:
    with write(sqlite_world.engine) as connection:
        connection.execute(update(campaigns).values(definition=definition("spring-sale", expires_after="3h")))
    expires_at = opened(sqlite_world).send.expires_at
    assert expires_at is not None
    assert timedelta(hours=2, minutes=59) < expires_at - now() <= timedelta(hours=3)


def test_an_unknown_campaign_offers_near_matches(sqlite_world: World) -> None:
    world = sqlite_world
    with pytest.raises(CampaignError, match="did you mean spring-sale"):
        open_send(world.engine, world.settings, "sprung-sale", "1", SendMode.SEND, launched_by="ann", claim="x")


@pytest.mark.parametrize("edition", ["", "a b", "a#b", "a/b", ".hidden", "x" * 41, "test-1", "dry-1"])
def test_an_edition_that_cannot_be_a_folder_or_is_kept_for_tests_is_refused(sqlite_world: World, edition: str) -> None:
    with pytest.raises(SendError, match="edition"):
        opened(sqlite_world, edition=edition)


def test_tests_and_dry_runs_have_editions_of_their_own(sqlite_world: World) -> None:
    world = sqlite_world
    assert opened(world, mode=SendMode.DRY_RUN).send.edition == "dry-1"
    first = opened(world, mode=SendMode.TEST)
    assert first.send.edition == "test-1.1"
    assert opened(world, mode=SendMode.TEST).send.edition == "test-1.1"  # still under way: the same
    change(world, first.send.id, state=SendState.FINISHED, claim=None)
    assert opened(world, mode=SendMode.TEST).send.edition == "test-1.2"


def test_a_retry_of_the_same_execution_finds_its_send_as_it_left_it(world: World) -> None:
    first = opened(world)
    set_state(world.engine, first.send.id, SendState.FREEZING, actor="ann")
    again = opened(world)
    assert (again.send.id, again.send.state, again.phase) == (first.send.id, SendState.FREEZING, 1)


def test_a_finished_send_is_topped_up_by_the_next_phase(world: World) -> None:
    send_id = world.send(state=SendState.FINISHED, approved_by="bob", approved_at=now(), approval_digest="x")
    world.publish(send_id, [2])
    settle_all(world, send_id)
    made = opened(world)
    assert (made.send.id, made.phase, made.send.state) == (send_id, 2, SendState.PLANNED)
    assert (made.send.approved_by, made.send.approval_digest) == (None, None)


def test_a_phase_that_began_goes_on(world: World) -> None:
    send_id = world.send(content_hash="c" * 64)
    world.publish(send_id, [2, 2])
    take_lease(world.engine, send_id, world.servers[0], 0)
    change(world, send_id, state=SendState.FAILED, reason="the worker died")
    made = opened(world)
    assert (made.phase, made.resuming, made.send.state) == (1, True, SendState.AWAITING_APPROVAL)


def test_its_approval_stays_valid_while_nothing_changed(world: World) -> None:
    send_id = world.send(content_hash="c" * 64)
    world.publish(send_id, [2, 2])
    with read(world.engine) as connection:
        manifest = connection.scalar(snapshots.select().with_only_columns(snapshots.c.manifest_sha256))
    digest = approval.approval_digest("c" * 64, str(manifest))
    take_lease(world.engine, send_id, world.servers[0], 0)
    change(world, send_id, state=SendState.FAILED, approved_by="bob", approved_at=now(), approval_digest=digest)
    assert opened(world).send.state == SendState.APPROVED


def test_a_phase_that_nobody_began_is_planned_anew(world: World) -> None:
    send_id = world.send(state=SendState.REJECTED)
    world.publish(send_id, [2])
    made = opened(world)
    assert (made.phase, made.superseded, made.send.state) == (2, True, SendState.PLANNED)


def test_a_stop_does_not_outlive_the_execution_that_it_stopped(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = world.send(state=SendState.STOPPED, control=Control.STOP)
    assert opened(world).send.control == Control.RUN
    assert opened(world).send.id == send_id


# --- the claim --------------------------------------------------------------------------------------------------------


def test_a_second_execution_is_refused_while_the_first_lives(world: World) -> None:
    opened(world, "airflow:one")
    with pytest.raises(ClaimedError, match="is being executed by airflow:one"):
        opened(world, "airflow:two")
    with pytest.raises(ClaimedError):
        opened(world, "airflow:two", take_over=True)


def test_a_silent_execution_is_taken_over_when_the_operator_says_so(world: World) -> None:
    first = opened(world, "airflow:one")
    change(world, first.send.id, claimed_at=now() - timedelta(seconds=90))
    with pytest.raises(ClaimedError, match=r"gave no sign for 90 s .* take-over"):
        opened(world, "airflow:two")
    assert opened(world, "airflow:two", take_over=True).send.claim == "airflow:two"
    with pytest.raises(ClaimLostError, match="is held by airflow:two now"):
        heartbeat(world.engine, first.send.id, "airflow:one")


def test_a_heartbeat_keeps_the_claim_fresh(world: World) -> None:
    first = opened(world, "airflow:one")
    change(world, first.send.id, claimed_at=now() - timedelta(seconds=90))
    held_send(world.engine, first.send.id, "airflow:one")
    with pytest.raises(ClaimedError, match="is being executed"):
        opened(world, "airflow:two", take_over=True)


def test_a_freed_claim_is_anybodys(world: World) -> None:
    first = opened(world, "airflow:one")
    release(world.engine, first.send.id, "airflow:two")  # not theirs: nothing happens
    with pytest.raises(ClaimedError):
        opened(world, "airflow:two")
    release(world.engine, first.send.id, "airflow:one")
    assert opened(world, "airflow:two").send.claim == "airflow:two"


def test_a_process_that_is_gone_holds_nothing(sqlite_world: World) -> None:
    child = subprocess.run(
        [sys.executable, "-c", "from mailer_lib.dispatch.sends import process_claim; print(process_claim())"],
        capture_output=True,
        text=True,
        check=True,
    )
    dead = child.stdout.strip()
    assert holder_is_gone(dead)
    assert not holder_is_gone(process_claim())
    assert not holder_is_gone("airflow:manual__2026-11-24T03:33:12")
    assert not holder_is_gone(dead.replace(dead.split(":")[1], "elsewhere"))
    opened(sqlite_world, dead)
    assert opened(sqlite_world, "airflow:two").send.claim == "airflow:two"


def test_a_long_claim_is_cut_and_stays_itself() -> None:
    long = "airflow:" + "x" * 200
    assert len(fit_claim(long)) == CLAIM_CHARS
    assert fit_claim(fit_claim(long)) == fit_claim(long) != fit_claim(long + "y")
    assert fit_claim("short") == "short"


TRIGGER = """
import sys
from mailer_lib.database.engine import open_engine
from mailer_lib.dispatch.sends import ClaimedError, open_send
from mailer_lib.settings import load_settings
from mailer_lib.terms import SendMode
engine, settings = open_engine(load_settings().url), load_settings()
sys.stdin.readline()
try:
    open_send(engine, settings, "spring-sale", "1", SendMode.SEND, launched_by="ann", claim=sys.argv[1])
    print("opened")
except ClaimedError:
    print("refused")
"""


def test_of_four_triggers_at_once_one_gets_the_send(world: World) -> None:
    triggers = [
        subprocess.Popen(
            [sys.executable, "-c", TRIGGER, f"airflow:{n}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        for n in range(4)
    ]
    try:
        for trigger in triggers:
            assert trigger.stdin is not None
            trigger.stdin.write("go\n")
            trigger.stdin.flush()
        said = sorted(trigger.communicate(timeout=60)[0].strip() for trigger in triggers)
    finally:
        for trigger in triggers:
            trigger.kill()
            trigger.wait()
    assert said == ["opened", "refused", "refused", "refused"]


# --- approval ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def waiting(world: World) -> tuple[World, int, str]:
    """A send that waits for its approval, and the digest that was shown."""
    send_id = world.send(state=SendState.AWAITING_APPROVAL, content_hash="c" * 64)
    world.publish(send_id, [2])
    with read(world.engine) as connection:
        manifest = connection.scalar(snapshots.select().with_only_columns(snapshots.c.manifest_sha256))
    return world, send_id, approval.approval_digest("c" * 64, str(manifest))


def test_an_approval_is_noted_with_its_name_and_digest(waiting: tuple[World, int, str]) -> None:
    world, send_id, digest = waiting
    with pytest.raises(approval.ApprovalError, match="isn't approved"):
        approval.require_valid(world.engine, send_id)
    approval.approve(world.engine, world.settings, send_id, digest=digest, approver="bob")
    approval.approve(world.engine, world.settings, send_id, digest=digest, approver="bob")
    approval.require_valid(world.engine, send_id)
    with read(world.engine) as connection:
        send = find_send(connection, "spring-sale#1")
    assert (send.state, send.approved_by, send.approval_digest) == (SendState.APPROVED, "bob", digest)


def test_an_approval_is_void_when_message_or_recipients_change(waiting: tuple[World, int, str]) -> None:
    world, send_id, digest = waiting
    approval.approve(world.engine, world.settings, send_id, digest=digest, approver="bob")
    change(world, send_id, content_hash="d" * 64)
    with pytest.raises(approval.ApprovalError, match="changed after bob approved it"):
        approval.require_valid(world.engine, send_id)
    change(world, send_id, state=SendState.AWAITING_APPROVAL)
    with pytest.raises(approval.ApprovalError, match="void"):
        approval.approve(world.engine, world.settings, send_id, digest=digest, approver="bob")


def test_an_approval_holds_for_a_day(waiting: tuple[World, int, str]) -> None:
    world, send_id, digest = waiting
    approval.approve(world.engine, world.settings, send_id, digest=digest, approver="bob")
    change(world, send_id, approved_at=now() - timedelta(hours=24, seconds=1))
    with pytest.raises(approval.ApprovalError, match="older than 24 h"):
        approval.require_valid(world.engine, send_id)


def test_who_launched_it_may_not_approve_it_when_so_set(waiting: tuple[World, int, str]) -> None:
    world, send_id, digest = waiting
    strict = Settings(home=world.settings.home, approver_must_differ=True)
    with pytest.raises(approval.ApprovalError, match="ann launched"):
        approval.approve(world.engine, strict, send_id, digest=digest, approver="ann")
    approval.approve(world.engine, strict, send_id, digest=digest, approver="bob")


def test_a_rejection_ends_it_with_the_name(waiting: tuple[World, int, str]) -> None:
    world, send_id, _ = waiting
    approval.reject(world.engine, send_id, by="bob")
    with read(world.engine) as connection:
        send = find_send(connection, "spring-sale#1")
    assert (send.state, send.reason) == (SendState.REJECTED, "rejected by bob")


# --- control ----------------------------------------------------------------------------------------------------------


def test_operators_pause_resume_and_stop_a_send(world: World) -> None:
    world.send()
    assert control.pause(world.engine, "spring-sale#1", "ann").control == Control.PAUSE
    assert control.pause(world.engine, "spring-sale#1", "ann").control == Control.PAUSE
    assert control.resume(world.engine, "spring-sale#1", "ann").control == Control.RUN
    assert control.set_pace(world.engine, "spring-sale#1", 2.5, "ann").pace_per_s == 2.5
    assert control.stop(world.engine, "spring-sale#1", "ann").control == Control.STOP
    with pytest.raises(SendError, match="was stopped; trigger it again"):
        control.resume(world.engine, "spring-sale#1", "ann")
    with read(world.engine) as connection:
        actions = [(row.action, row.actor) for row in connection.execute(audit_log.select())]
    assert actions == [("send.pause", "ann"), ("send.run", "ann"), ("send.pace", "ann"), ("send.stop", "ann")]


def test_what_is_over_or_unknown_cannot_be_controlled(sqlite_world: World) -> None:
    world = sqlite_world
    world.send(state=SendState.FINISHED)
    with pytest.raises(SendError, match="is finished; there is nothing to control"):
        control.pause(world.engine, "spring-sale#1", "ann")
    with pytest.raises(SendError, match="it has spring-sale#1"):
        control.pause(world.engine, "spring-sale#2", "ann")


def test_a_send_is_written_campaign_edition() -> None:
    assert parse_ref("spring-sale#2") == ("spring-sale", "2")
    assert parse_ref("spring-sale") == ("spring-sale", "1")
    for wrong in ("", "#1", "a#b#c"):
        with pytest.raises(SendError):
            parse_ref(wrong)
