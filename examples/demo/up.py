"""``make up``: the demo's installation, left running on localhost to play with. ``python -m examples.demo.up``"""

import sys

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from examples.demo import setup
from examples.demo.airflow_api import AirflowApi, AirflowApiError
from examples.demo.commands import DemoError, mailfleet
from examples.demo.services import start_services
from examples.demo.stack import APPROVER, OPERATOR, PROJECT, VIEWER, StackError
from examples.demo.world import World, demo_world

CAMPAIGN = "summer-preview"


def make_pools(api: AirflowApi) -> None:
    """Airflow's own pools that the DAGs name."""
    sys.path.append(str(PROJECT / "plugins"))  # Airflow does the same
    from mailfleet_airflow.policy import POOL_SLOTS  # type: ignore[import-not-found]

    for name, slots in POOL_SLOTS.items():
        api.make_pool(name.value, slots)


def up(world: World, console: Console) -> None:
    """Start everything and say where it is; safe to call again."""
    world.adopt()
    console.print("[bold]Airflow starts[/]")
    world.stack.prepare()
    world.stack.start()
    console.print("[bold]Contacts, campaigns, dispatch servers[/]")
    setup.generate(world, console)
    setup.set_up(world, Console(quiet=True))
    start_services(world)
    setup.import_people(world, Console(quiet=True))
    setup.make_campaigns(Console(quiet=True))
    world.stack.wait_healthy()
    api = AirflowApi(world.stack.url, OPERATOR, world.stack.password())
    api.wait_for_dags({"campaign_send", "campaign_control", "campaign_schedule"})
    make_pools(api)
    preview = mailfleet(console, "campaign", "show", CAMPAIGN, show=False)
    console.print(Panel(_where(world, preview), title="Running on this machine only", expand=False))


def _where(world: World, preview: str) -> str:
    url = world.stack.url
    users = "\n".join(
        f"          {user:8} {world.stack.password(user)}   {what}"
        for user, what in (
            (OPERATOR, "may do everything"),
            (APPROVER, "operates and approves"),
            (VIEWER, "only looks"),
        )
    )
    return (
        f"Airflow   {url}\n{users}\n"
        f"Inbox     {world.inbox_url}\n"
        f"Links     {world.serve_url}  (unsubscribe, preview)\n\n"
        f"Trigger   {url}/mailfleet/trigger?campaign={CAMPAIGN}&mode=send\n"
        "          (once logged in) the form, filled in; the send lasts about three minutes\n"
        f"Approve   open the task `approval` of the run, Required actions\n"
        f"Pause …   {url}/dags/campaign_control  send {CAMPAIGN}#1, action pause, resume, stop or pace\n"
        f"Sends     {url}/plugin/mailfleet-sends\n"
        f"Preview   the button of the task `approval`, and the link in its question\n"
        f"Stop      make down"
    )


def main() -> int:
    console = Console(width=None if sys.stdout.isatty() else 140)
    world = demo_world()
    try:
        up(world, console)
    except (DemoError, StackError, AirflowApiError) as error:
        console.print(f"\n[bold red]It didn't start:[/] {escape(str(error))}", soft_wrap=True)
        from examples.demo.down import down

        down(world)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
