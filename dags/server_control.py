"""
# Configure, drain or retire a dispatch server, or change its keys

What `mailfleet server …` does on the command line, for who has no shell where Airflow runs: the playbooks of
`include/playbooks` on servers that were provisioned. Verification, activation and provisioning of a new server need
DNS records, and the eye of a person: `mailfleet server`, or **fleet_scale**.

## Parameters

| parameter | what it does |
| --- | --- |
| **server** | name of the dispatch server, such as `mta-1` |
| **action** | `configure` · `rotate-keys` · `renew` · `drain` · `retire` |
| **dry_run** | for `configure` and `renew`: only say what would change; on by default |
| **wait_s** | for `drain`: seconds to wait for its agents, and then for its queues; 0: don't wait |

`configure` writes Exim's configuration anew. `rotate-keys` does the next step to a new DKIM key for this server: makes
it and says what to publish; lets it sign once that is published; says when the old record may leave DNS. `renew` gives
Exim a new TLS certificate and says anew who may log in.

Example: `{"server": "mta-1", "action": "drain", "wait_s": 3600}`

## Stop it, recover it

Fail the task to stop it: the playbook ends with its present step. Every action may be run again, and finds what was
done: a failure half-way needs no other repair. `retire` refuses while the server holds a lease or its queue a message,
and gives a rented machine back. Each action is in the audit log with your name.
"""

from __future__ import annotations

from airflow.sdk import Param, dag
from mailfleet_airflow.policy import DEFAULT_ARGS, Tag, tags
from mailfleet_airflow.server_control import ServerAction, apply_action
from pendulum import datetime

PARAMS = {
    "server": Param(type="string", minLength=1, maxLength=64, title="Dispatch server"),
    "action": Param(ServerAction.CONFIGURE.value, enum=[action.value for action in ServerAction], title="Action"),
    "dry_run": Param(True, type="boolean", title="Dry run", description="for configure and renew: change nothing"),
    "wait_s": Param(
        0, type="integer", minimum=0, maximum=86_400, title="Wait, s", description="for drain: until nothing is left"
    ),
}


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1, tz="UTC"),
    params=PARAMS,
    default_args=DEFAULT_ARGS,
    tags=tags(Tag.FLEET, Tag.OPERATOR),
    doc_md=__doc__,
)
def server_control() -> None:
    apply_action()


server_control()
