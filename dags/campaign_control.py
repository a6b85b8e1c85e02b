"""
# Pause, resume, stop or slow down a send, decide after its test slice

Airflow's own pause switch does not stop running tasks; this does, within seconds, on every dispatch server.

## Parameters

| parameter | what it does |
| --- | --- |
| **send** | `campaign#edition`, such as `spring-sale#1` |
| **action** | `pause` · `resume` · `stop` (the rest is *cancelled*) · `pace` · `decide` · `recall` |
| **pace_per_s** | for `pace`: messages a second of the whole send; 0 takes the limit off |
| **variant** | for `decide`: name of the variant that the rest gets after a test slice; it stands |

Example: `{"send": "spring-sale#1", "action": "pause"}`

## Stop it, recover it

It runs for a second (`recall` for minutes) and can't be stopped. A wrong action is undone by the opposite one, but for
three: `decide` stands, what `recall` took back is gone from the queue, and `stop` ends the send; triggering
**campaign_send** again for the same edition goes on with who hasn't been sent to.
Each action is in the audit log with your name. The same on the command line: `mailfleet send pause SEND`, and so on.
"""

from __future__ import annotations

import logging
from enum import StrEnum

from airflow.sdk import Param, dag, get_current_context, task
from mailfleet_airflow.installation import installation
from mailfleet_airflow.policy import DEFAULT_ARGS, Tag, tags
from mailfleet_airflow.runs import launched_by

log = logging.getLogger(__name__)


class Action(StrEnum):
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    PACE = "pace"
    DECIDE = "decide"
    RECALL = "recall"


PARAMS = {
    "send": Param(type="string", pattern=r"^[^#]+#[^#]+$", title="Send", description="campaign#edition"),
    "action": Param(Action.PAUSE.value, enum=[action.value for action in Action], title="Action"),
    "pace_per_s": Param(
        None,
        type=["number", "null"],
        minimum=0,
        title="Pace",
        description="for pace: messages a second; 0: no limit",
    ),
    "variant": Param(
        None, type=["string", "null"], title="Variant", description="for decide: what the rest gets after a test slice"
    ),
}


@dag(
    schedule=None,
    params=PARAMS,
    default_args=DEFAULT_ARGS,
    tags=tags(Tag.SENDING, Tag.OPERATOR),
    doc_md=__doc__,
)
def campaign_control() -> None:
    apply_action()


@task(task_id="apply")
def apply_action() -> str:
    from mailer_lib.dispatch import control, decision, recall_send

    context = get_current_context()
    engine, settings = installation()
    params, actor = context["params"], launched_by(context["dag_run"])
    match Action(params["action"]):
        case Action.PAUSE:
            control.pause(engine, params["send"], actor)
        case Action.RESUME:
            control.resume(engine, params["send"], actor)
        case Action.STOP:
            control.stop(engine, params["send"], actor)
        case Action.PACE:
            if params["pace_per_s"] is None:
                raise ValueError("action pace needs pace_per_s: messages a second of the whole send, 0 for no limit")
            control.set_pace(engine, params["send"], params["pace_per_s"] or None, actor)
        case Action.DECIDE:
            if not params["variant"]:
                raise ValueError("action decide needs variant: the name of the one that the rest gets")
            decision.decide(engine, settings, params["send"], params["variant"], actor)
        case Action.RECALL:
            for one in recall_send.recall_send(engine, settings, params["send"], actor):
                log.info("%s: %s", one.slot, one.trouble or f"{one.messages} messages taken back")
    done = f"{params['send']}: {params['action']}, by {actor}"
    log.info("%s", done)
    return done


campaign_control()
