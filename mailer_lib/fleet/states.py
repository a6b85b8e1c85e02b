"""The life of a dispatch server: which state may follow which, and why another may not. Pure.

    standby → provisioning → verifying → standby (verified) → warming → active → draining → retired

A server that failed or was fenced comes back through standby, provisioning or verifying.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from mailer_lib.terms import ChannelKind, ServerState

_S = ServerState
MAY_SEND = (_S.ACTIVE, _S.WARMING)  # take leases; the others get no new one

_NEXT: Mapping[ServerState, frozenset[ServerState]] = {
    _S.STANDBY: frozenset({_S.PROVISIONING, _S.VERIFYING, _S.WARMING, _S.ACTIVE, _S.RETIRED, _S.FAILED, _S.FENCED}),
    _S.PROVISIONING: frozenset({_S.VERIFYING, _S.STANDBY, _S.FAILED, _S.FENCED}),
    _S.VERIFYING: frozenset({_S.STANDBY, _S.WARMING, _S.ACTIVE, _S.PROVISIONING, _S.FAILED, _S.FENCED}),
    _S.WARMING: frozenset({_S.ACTIVE, _S.DRAINING, _S.STANDBY, _S.FAILED, _S.FENCED}),
    _S.ACTIVE: frozenset({_S.WARMING, _S.DRAINING, _S.STANDBY, _S.FAILED, _S.FENCED}),
    _S.DRAINING: frozenset({_S.RETIRED, _S.STANDBY, _S.WARMING, _S.ACTIVE, _S.FAILED, _S.FENCED}),
    _S.RETIRED: frozenset({_S.STANDBY, _S.PROVISIONING, _S.FENCED}),
    _S.FAILED: frozenset({_S.STANDBY, _S.PROVISIONING, _S.VERIFYING, _S.DRAINING, _S.RETIRED, _S.FENCED}),
    _S.FENCED: frozenset({_S.STANDBY, _S.WARMING, _S.ACTIVE, _S.PROVISIONING, _S.FAILED, _S.RETIRED}),
}

_WHY_NOT: Mapping[tuple[ServerState, ServerState], str] = {
    (_S.WARMING, _S.RETIRED): "its MTA may still hold mail: drain it first",
    (_S.ACTIVE, _S.RETIRED): "its MTA may still hold mail: drain it first",
    (_S.WARMING, _S.PROVISIONING): "it sends: drain it first, since provisioning restarts its MTA",
    (_S.ACTIVE, _S.PROVISIONING): "it sends: drain it first, since provisioning restarts its MTA",
    (_S.DRAINING, _S.PROVISIONING): "its MTA still empties its queue: wait for that, and make it standby",
    (_S.WARMING, _S.VERIFYING): "a server in service is verified as it is, without a change of state",
    (_S.ACTIVE, _S.VERIFYING): "a server in service is verified as it is, without a change of state",
    (_S.DRAINING, _S.VERIFYING): "a draining server is verified as it is, without a change of state",
    (_S.STANDBY, _S.DRAINING): "it takes no leases, so there is nothing to drain",
    (_S.VERIFYING, _S.RETIRED): "wait for the verification, or make it standby first",
    (_S.PROVISIONING, _S.RETIRED): "wait for the playbook, or make it standby first",
    (_S.FENCED, _S.DRAINING): "it is given up already: make it standby once it is reconciled, or retire it",
    (_S.FENCED, _S.VERIFYING): "it is given up: make it standby once it is reconciled, then verify it",
}


def why_not(before: ServerState, after: ServerState) -> str | None:
    """Why a server can't go from one state to the other, and what to do; None: it can."""
    if before is after or after in _NEXT[before]:
        return None
    if before is _S.RETIRED:
        return "it is retired: make it standby, provision and verify it again"
    if before is _S.FAILED and after in MAY_SEND:
        return "it failed: put right what failed, then verify it"
    if before is _S.PROVISIONING and after in MAY_SEND:
        return "it is being provisioned: verify it first"
    return _WHY_NOT.get((before, after), f"after {before} come only {', '.join(sorted(_NEXT[before]))}")


def needs_verification(channel: ChannelKind, after: ServerState) -> bool:
    """A server of the channel ``ssh`` sends only once it was verified; the MTA beside a local agent is its owner's."""
    return channel is ChannelKind.SSH and after in MAY_SEND


def service_state(channel: ChannelKind, *, ramp_is_through: bool, warmed: bool | None = None) -> ServerState:
    """What `activate` makes of a server. ``warmed``: what the operator says of its address; None: nothing.

    A new address warms up first. The MTA of a local agent may be a relay that has sent for years.
    """
    if warmed is None:
        warmed = channel is ChannelKind.LOCAL or ramp_is_through
    return ServerState.ACTIVE if warmed else ServerState.WARMING


def is_old(at: datetime, now: datetime, days: int) -> bool:
    """Whether what was seen ``at`` is too long ago to be relied on."""
    return now - at > timedelta(days=days)
