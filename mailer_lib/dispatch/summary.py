"""What people read about a send: before it, to decide on an approval; after it, to know what happened. Markdown."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypedDict

from sqlalchemy import Connection, Engine, select

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.manifest import Counts
from mailer_lib.audience.plan import Slice
from mailer_lib.database.engine import now, read
from mailer_lib.database.schema import sends as sends_table
from mailer_lib.database.schema import snapshots
from mailer_lib.dispatch.books import Books, read_books
from mailer_lib.dispatch.digest import present_digest
from mailer_lib.dispatch.forecast import capacity_of, forecast, zones_left
from mailer_lib.dispatch.lease import unsettled_rows
from mailer_lib.dispatch.plan import slots_for
from mailer_lib.dispatch.sends import SendError, SendRecord
from mailer_lib.message.campaign import STOP, CampaignError
from mailer_lib.message.compile import load_bundle
from mailer_lib.message.preview_link import preview_link
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import Outcome, SendMode, SendState, SnapshotState

_GOOD = frozenset({SendState.FINISHED, SendState.STOPPED, SendState.EXPIRED})


class ApprovalSummary(TypedDict):
    send: str
    digest: str
    frozen: int  # rows of this phase
    left: int  # of them without an outcome: what would be sent
    nothing_to_send: bool
    by_provider: dict[str, int]
    by_reason: dict[str, int]
    difference: dict[str, Any] | None  # from the campaign's last send
    warnings: list[str]
    forecast: dict[str, Any]
    preview_url: str
    markdown: str


def make_summary(engine: Engine, settings: Settings, send: SendRecord, warnings: list[str]) -> ApprovalSummary:
    """The approval's question.

    Raises:
        SendError: message or recipients aren't frozen yet.
    """
    with read(engine) as connection:
        newest = newest_snapshot(connection, send.id)
        digest = present_digest(connection, send.id)
        if newest is None or digest is None:
            raise SendError(f"{send.ref} isn't frozen yet: message and recipients come first")
        manifest = manifests.load(store(settings) / newest.path)
        counts = manifest.counts
        left = unsettled_rows(connection, send.id, newest.phase)
        last = _last_counts(connection, settings, send)
        share = left / counts.frozen if counts.frozen else 0.0
        messages = {provider: round(n * share) for provider, n in counts.by_provider.items()}
        expected = forecast(messages, capacity_of(connection, send), now(), zones_left(connection, send))
    slots = [slot.label for slot in slots_for(engine, send.id)]
    difference = _difference(counts, last) if last is not None else None
    summary = ApprovalSummary(
        send=send.ref,
        digest=digest,
        frozen=counts.frozen,
        left=left,
        nothing_to_send=left == 0,
        by_provider=dict(sorted(counts.by_provider.items(), key=lambda item: (-item[1], item[0]))),
        by_reason=dict(sorted(counts.by_reason.items(), key=lambda item: (-item[1], item[0]))),
        difference=difference,
        warnings=warnings,
        forecast=expected.as_dict(),
        preview_url=preview_link(settings, send.id),
        markdown="",
    )
    summary["markdown"] = _question(send, summary, counts, slots, manifest.test_slice)
    return summary


def newest_snapshot(connection: Connection, send_id: int) -> Any:
    """Row of the newest published phase in ``snapshots``, or None."""
    return connection.execute(
        select(snapshots)
        .where(snapshots.c.send_id == send_id, snapshots.c.state == SnapshotState.PUBLISHED)
        .order_by(snapshots.c.phase.desc())
        .limit(1)
    ).one_or_none()


def _last_counts(connection: Connection, settings: Settings, send: SendRecord) -> tuple[str, Counts] | None:
    """The first phase of the campaign's last real send before this one."""
    row = connection.execute(
        select(sends_table.c.edition, snapshots.c.path)
        .join(snapshots, snapshots.c.send_id == sends_table.c.id)
        .where(
            sends_table.c.campaign_id == send.campaign_id,
            sends_table.c.id < send.id,
            sends_table.c.mode == SendMode.SEND,
            sends_table.c.started_at.is_not(None),
            snapshots.c.phase == 1,
            snapshots.c.state == SnapshotState.PUBLISHED,
        )
        .order_by(sends_table.c.id.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    try:
        return f"{send.campaign}#{row.edition}", manifests.load(store(settings) / row.path).counts
    except RuntimeError:  # its snapshot was cleared away
        return None


def _difference(counts: Counts, last: tuple[str, Counts]) -> dict[str, Any]:
    name, before = last
    providers = sorted(counts.by_provider.keys() | before.by_provider.keys())
    return {
        "send": name,
        "frozen": counts.frozen - before.frozen,
        "excluded": counts.excluded - before.excluded,
        "by_provider": {
            p: counts.by_provider.get(p, 0) - before.by_provider.get(p, 0)
            for p in providers
            if counts.by_provider.get(p, 0) != before.by_provider.get(p, 0)
        },
    }


def _question(send: SendRecord, summary: ApprovalSummary, counts: Counts, slots: list[str], rule: Slice | None) -> str:
    lines = [f"## {send.ref} ({send.mode})", ""]
    if summary["nothing_to_send"]:
        lines += ["Nobody is left to send to.", ""]
    lines += [
        f"**{summary['left']:,}** people get it; {counts.matching:,} matched the criteria, {counts.excluded:,} of them "
        "are excluded.",
        "",
        *_table("mailbox provider", "people", summary["by_provider"]),
        *_table("excluded because", "people", summary["by_reason"]),
    ]
    split = ", ".join(f"{n:,}" for n in counts.by_variant)
    if rule is not None:
        lines += [f"Test slice: {counts.frozen - counts.rest:,} people get it first, by variant {split}. "]
        lines[-1] += f"{counts.rest:,} wait until a person decides which variant they get{_until(rule)}."
        lines += [""]
    elif len(counts.by_variant) > 1:
        lines += [f"Variants: {split}", ""]
    difference = summary["difference"]
    if difference is not None:
        lines += [
            f"Against {difference['send']}: {difference['frozen']:+,} people, {difference['excluded']:+,} excluded."
        ]
        if difference["by_provider"]:
            lines += ["By provider: " + ", ".join(f"{p} {n:+,}" for p, n in difference["by_provider"].items()) + "."]
        lines += [""]
    lines += [f"- Warning: {warning}" for warning in summary["warnings"]]
    lines += ["", _forecast_sentence(summary["forecast"], slots)]
    if send.expires_at is not None:
        lines += [f"What isn't handed over by {send.expires_at:%Y-%m-%d %H:%M} UTC expires."]
    lines += ["", f"[Preview]({summary['preview_url']}) · digest `{summary['digest'][:12]}`"]
    return "\n".join(lines)


def _until(rule: Slice) -> str:
    if rule.decide_within_s is None:
        return ""
    otherwise = "the send is stopped" if rule.otherwise == STOP else f"they get variant {rule.otherwise}"
    return f"; after {duration(rule.decide_within_s)} {otherwise}"


def _forecast_sentence(expected: Mapping[str, Any], slots: list[str]) -> str:
    if not slots:
        return "No dispatch server may send now."
    if expected["total_s"] is None:
        return "Forecast: it would never be done with the servers there are."
    slowest = expected["by_provider"][:1]
    bound = f", bound by {slowest[0]['bound_by']}" if slowest else ""
    return f"Forecast: handed over within {duration(expected['total_s'])} from {', '.join(slots)}{bound}."


def duration(seconds: float) -> str:
    """``0:03:20``."""
    return str(timedelta(seconds=round(seconds)))


def _table(left: str, right: str, rows: Mapping[str, int]) -> list[str]:
    if not rows:
        return []
    body = [f"| {name} | {count:,} |" for name, count in rows.items()]
    return [f"| {left} | {right} |", "| --- | ---: |", *body, ""]


# --- afterwards -------------------------------------------------------------------------------------------------------


def make_report(engine: Engine, settings: Settings, send: SendRecord) -> dict[str, Any]:
    """What became of a send: send, state, ok, reason, books, markdown. ``ok``: it ended well and the books balance."""
    books, problems = read_books(engine, settings, send.id)
    ok = send.state in _GOOD and books.balanced and not problems
    reason = send.reason or ("; ".join(problems) or None)
    return {
        "send": send.ref,
        "state": send.state.value,
        "ok": ok,
        "reason": None if ok else reason or f"{send.ref} is {send.state}",
        "books": books.as_dict(),
        "markdown": _report_text(send, books, problems, _decided(settings, send)),
    }


def _decided(settings: Settings, send: SendRecord) -> list[str]:
    """What the rest of a test slice got, and who decided so."""
    if send.decided_variant is None or send.content_hash is None:
        return []
    try:
        name = load_bundle(settings, send.content_hash).variants[send.decided_variant].name
    except CampaignError:  # the frozen message is gone
        name = f"number {send.decided_variant}"
    return [f"The rest got variant {name}, as {send.decided_by} decided at {send.decided_at:%Y-%m-%d %H:%M} UTC."]


def _report_text(send: SendRecord, books: Books, problems: list[str], decided: list[str]) -> str:
    lines = [f"## {send.ref}: {send.state}", ""]
    if send.reason:
        lines += [send.reason, ""]
    lines += [f"`{books.line()}`", "", "The books balance." if books.balanced and not problems else "NOT balanced."]
    lines += [f"- {problem}" for problem in problems]
    lines += ["", *_by_provider(books), *against_forecast(send, books)]
    if send.started_at is not None and send.finished_at is not None:
        took_s = (send.finished_at - send.started_at).total_seconds()
        rate = books[Outcome.INJECTED] / took_s if took_s > 0 else 0.0
        lines += [f"Sending took {duration(took_s)}, {rate:.1f} messages a second; {books.deferrals:,} deferrals."]
    if send.started_at is not None and send.first_injected_at is not None:
        first_s = (send.first_injected_at - send.started_at).total_seconds()
        lines += [f"The first message was handed over after {max(0.0, first_s):.1f} s."]
    if send.approved_by:
        lines += [f"Approved by {send.approved_by}."]
    lines += decided
    return "\n".join(lines)


def against_forecast(send: SendRecord, books: Books) -> list[str]:
    """How long each provider took, and was forecast to. Nothing for a send of several phases: a forecast is for one."""
    if send.forecast is None or send.started_at is None or books.phases != 1:
        return []
    head = ["| mailbox provider | forecast | took | bound by (forecast) |", "| --- | ---: | ---: | --- |"]
    body = []
    for one in send.forecast["by_provider"]:
        done_at = books.last_injected_at.get(one["provider"])
        if done_at is None:
            took = "nothing handed over"
        else:
            took = duration(max(0.0, (done_at - send.started_at).total_seconds()))
        expected = "never" if one["done_after_s"] is None else duration(one["done_after_s"])
        body.append(f"| {one['provider']} | {expected} | {took} | {one['bound_by']} |")
    return [*head, *body, ""] if body else []


def _by_provider(books: Books) -> list[str]:
    if not books.by_provider:
        return []
    used = [outcome for outcome in Outcome if books[outcome]]
    head = ["| mailbox provider | " + " | ".join(used) + " |", "| --- |" + " ---: |" * len(used)]
    rows = sorted(books.by_provider.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    body = [f"| {p} | " + " | ".join(f"{counts.get(outcome, 0):,}" for outcome in used) + " |" for p, counts in rows]
    return [*head, *body, ""]
