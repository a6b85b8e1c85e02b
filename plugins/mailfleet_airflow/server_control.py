"""The task of ``server_control``: one action on one dispatch server."""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import TYPE_CHECKING

from airflow.sdk import get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from mailfleet_airflow.installation import installation
from mailfleet_airflow.runs import launched_by

if TYPE_CHECKING:
    from mailer_lib.fleet.playbooks import HostResult, PlaybookEvent

log = logging.getLogger(__name__)


class ServerAction(StrEnum):
    CONFIGURE = "configure"
    ROTATE_KEYS = "rotate-keys"
    RENEW = "renew"
    DRAIN = "drain"
    RETIRE = "retire"


@task(task_id="apply")
def apply_action() -> str:
    from mailer_lib.dispatch import retiring
    from mailer_lib.dispatch.key_rotation import rotate
    from mailer_lib.dispatch.server_builder import FleetBuilder
    from mailer_lib.fleet.hosts import source_of
    from mailer_lib.fleet.upkeep import Upkeep

    context = get_current_context()
    engine, settings = installation()
    params, actor = context["params"], launched_by(context["dag_run"])
    name, action = params["server"], ServerAction(params["action"])
    dry_run = params["dry_run"] and action in (ServerAction.CONFIGURE, ServerAction.RENEW)
    upkeep = Upkeep(engine, settings, actor, on_event=_tell, check=dry_run)
    match action:
        case ServerAction.CONFIGURE:
            said = _result(upkeep.configure([name])[name])
        case ServerAction.ROTATE_KEYS:
            done = rotate(engine, settings, name, actor=actor)
            said = "; ".join(f"{one.sentence}{': ' + one.zone_line if one.zone_line else ''}" for one in done)
        case ServerAction.RENEW:
            said = _result(upkeep.renew_host_keys([name])[name])
        case ServerAction.DRAIN:
            retiring.begin_drain(engine, name, actor=actor)
            said = _result(upkeep.wait_drained([name], params["wait_s"])[name]) if params["wait_s"] else "draining"
        case ServerAction.RETIRE:
            builder = FleetBuilder(engine, settings, actor, log.info)
            back = retiring.retire(engine, settings, name, actor=actor, builder=builder, hosts=source_of(settings))
            said = "retired, and its machine is given back" if back else "retired"
    words = f"{name}: {action}{' (dry run)' if dry_run else ''}: {said}, by {actor}"
    log.info("%s", words)
    return words


def _tell(event: PlaybookEvent) -> None:
    log.info("%s: %s: %s", event.host, event.task, event.text or event.outcome)


def _result(result: HostResult) -> str:
    from mailer_lib.terms import HostOutcome

    if result.outcome is HostOutcome.FAILED:
        where = f" (task {result.task})" if result.task else ""
        raise AirflowFailException(f"{result.host}: {result.sentence}{where}")
    return result.sentence
