"""``make demo``: a whole campaign through Airflow on this machine. ``python -m examples.demo.run``

Run again it triggers the same edition again, and nobody gets anything twice. Everything it starts is stopped.
"""

import sys
import time
from contextlib import ExitStack

from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.panel import Panel

from examples.demo import mail, setup
from examples.demo.airflow_api import AirflowApi, AirflowApiError, seconds_between
from examples.demo.commands import DemoError, mailfleet
from examples.demo.leaving import Leaver, leave_in_mid_run, letters
from examples.demo.services import start_services
from examples.demo.stack import APPROVER, OPERATOR, StackError
from examples.demo.up import make_pools
from examples.demo.watch import progress
from examples.demo.world import World, demo_world
from mailer_lib.database.engine import open_engine
from mailer_lib.dispatch.books import Books, balance
from mailer_lib.dispatch.sends import find_send
from mailer_lib.terms import Outcome

DAG = "campaign_send"
CAMPAIGN, EDITION = "spring-sale", "1"
SEND = f"{CAMPAIGN}#{EDITION}"
CONF = {"campaign": CAMPAIGN, "edition": EDITION, "mode": "send", "approval": True, "approvers": [APPROVER]}
SAMPLE = 200


class Demo:
    """One run of the demo, step by step."""

    def __init__(self, world: World, console: Console) -> None:
        self.world = world
        self.console = console
        self.began = time.monotonic()
        self.step = 0

    def title(self, text: str) -> None:
        self.step += 1
        passed = time.monotonic() - self.began
        self.console.print(f"\n[bold green]{self.step}. {text}[/] [dim]({passed:.0f} s)[/]")

    def run(self) -> None:
        world, console = self.world, self.console
        world.adopt()
        world.services.stop()  # what an earlier demo may have left
        with ExitStack() as stack:
            stack.callback(world.services.stop)
            self.title("Airflow's components start in the background (API server, scheduler, DAG processor, triggerer)")
            world.stack.prepare()
            world.stack.start()
            stack.callback(world.stack.stop)
            console.print(f"  {world.stack.url}, log-in in {world.stack.login_file}", style="dim", soft_wrap=True)

            self.title(f"A shop's export: {world.people:,} made-up people, with everything that goes wrong in one")
            setup.generate(world, console)
            self.title("An installation: keys, database, list, attributes, sending domain, three dispatch servers")
            setup.set_up(world, console)
            self.title("The mail sink (three listeners; GMX and web.de are moody) and `mailfleet serve`")
            start_services(world)
            console.print(f"  inbox {world.inbox_url}, links {world.serve_url}", style="dim")
            self.title("Import, with evidence of consent; then who left, and who must never get mail")
            setup.import_people(world, console)
            self.title("Sample criteria and campaigns")
            setup.make_campaigns(console)
            self.title("A letter to a few, from the command line; one of them will leave in mid-run")
            mailfleet(console, "send", "start", "welcome", "--yes")
            self._campaign()
        self.title("Everything is stopped")
        left = [*world.services.alive(), *world.stack.processes.alive()]
        if left:
            raise DemoError(f"still alive: {', '.join(str(p) for p in left)}")
        self._where_next()

    def _campaign(self) -> None:
        world, console = self.world, self.console
        engine = open_engine(world.settings.url)
        self.title("Airflow is healthy; the DAG is triggered over REST")
        world.stack.wait_healthy()
        api = AirflowApi(world.stack.url, OPERATOR, world.stack.password(OPERATOR))
        approver = AirflowApi(world.stack.url, APPROVER, world.stack.password(APPROVER))
        api.wait_for_dags({DAG, "campaign_control", "campaign_schedule"})
        make_pools(api)
        before = mail.count(world.maildir)
        triggered = time.time()
        run_id = api.trigger(DAG, CONF)
        console.print(f"  POST {world.stack.url}/api/v2/dags/{DAG}/dagRuns {CONF}", style="dim", soft_wrap=True)
        self._approve(approver, run_id)
        answered = time.time()
        leaver = self._watch(api, run_id)
        state = api.wait(DAG, run_id)
        if state != "success":
            raise DemoError(f"the run ended as {state}:\n{api.explain(DAG, run_id)}")

        self.title("The books")
        with engine.connect() as connection:
            send = find_send(connection, SEND)
        books = balance(engine, world.settings, send.id)
        after = mail.count(world.maildir)
        self._check(books, before, after, leaver)
        self._timing(api, run_id, triggered, answered)

        self.title(f"DKIM of {SAMPLE} messages, and nobody twice")
        mailfleet(console, "sink", "verify", "--sample", str(SAMPLE))

        self.title("The same edition is triggered again: nobody gets it twice")
        self._again(api, approver)
        self.console.print()
        self.console.print(Panel(books.line(), title=SEND, expand=False))
        engine.dispose()

    def _approve(self, approver: AirflowApi, run_id: str) -> None:
        try:
            asked = approver.wait_for_question(DAG, run_id)
        except AirflowApiError:
            if approver.run(DAG, run_id)["state"] != "success":
                raise
            self.console.print("  nobody is left to send to, so nobody is asked", style="dim")
            return
        self.title(f"Airflow asks {APPROVER}: {asked['subject']}")
        self.console.print(Panel(Markdown(asked["body"]), expand=False, width=100))
        approver.answer(DAG, run_id, "Approve")
        self.console.print(f'  PATCH …/hitlDetails {{"chosen_options": ["Approve"]}} as {APPROVER}', style="dim")

    def _watch(self, api: AirflowApi, run_id: str) -> Leaver | None:
        """Progress until the run has ended; in the middle of it one person leaves."""
        self.title("Sending, one mapped task for each dispatch server")
        engine = open_engine(self.world.settings.url)
        candidates = letters(self.world)
        leaver: Leaver | None = None
        said, last = 0.0, ""
        while api.run(DAG, run_id)["state"] not in ("success", "failed"):
            now = progress(engine, SEND)
            if leaver is None and now.settled > now.frozen // 20:
                leaver = leave_in_mid_run(self.world, engine, SEND, candidates)
                if leaver is not None:
                    self.console.print(
                        f"  [yellow]one of the letter's readers presses Unsubscribe (POST, HTTP {leaver.status}); "
                        f"{now.settled:,} of {now.frozen:,} are sent[/]"
                    )
            if str(now) != last and time.monotonic() - said > 3:
                said, last = time.monotonic(), str(now)
                self.console.print(f"  {escape(last)}", soft_wrap=True, highlight=False)
            time.sleep(0.4)
        self.console.print(f"  {escape(str(progress(engine, SEND)))}", soft_wrap=True, highlight=False)
        engine.dispose()
        return leaver

    def _check(self, books: Books, before: int, after: int, leaver: Leaver | None) -> None:
        say = self.console.print
        mailfleet(self.console, "send", "books", SEND)
        injected = books[Outcome.INJECTED]
        readers = [message.recipient for message in mail.received(self.world.maildir, SEND)]
        say(f"  Maildir: {before:,} messages before, {after:,} after; {len(readers):,} of them of {SEND}")
        if len(readers) != injected:
            raise DemoError(f"{len(readers)} messages of {SEND} were received, and {injected} are in the books")
        if not books.balanced or books.duplicates:
            raise DemoError("the books don't balance")
        if leaver is not None:
            got = leaver.address in readers
            say(f"  who left in mid-run got the letter, and of {SEND}: {'A MESSAGE' if got else 'nothing'} "
                f"(suppressed={books[Outcome.SUPPRESSED]})")  # fmt: skip
            if got or not books[Outcome.SUPPRESSED]:
                raise DemoError("a person who left in mid-run got the message")
        elif after != before:
            raise DemoError("nobody of the letter's readers was far enough from their turn to leave in mid-run")

    def _timing(self, api: AirflowApi, run_id: str, triggered: float, answered: float) -> None:
        engine = open_engine(self.world.settings.url)
        first = progress(engine, SEND).first_injected_at
        engine.dispose()
        run = api.run(DAG, run_id)
        sending = [t for t in api.tasks(DAG, run_id) if t["task_id"] == "dispatch" and t["start_date"]]
        whole_s = seconds_between(run["start_date"], run["end_date"])
        if sending and first is not None and first.timestamp() > triggered:
            began, ended = min(t["start_date"] for t in sending), max(t["end_date"] for t in sending)
            dispatch_s = seconds_between(began, ended)
            self.console.print(
                f"  trigger to first message: {first.timestamp() - triggered:.1f} s "
                f"({first.timestamp() - answered:.1f} s after the approval)\n"
                f"  the DAG's own overhead: {whole_s - dispatch_s:.1f} s, "
                f"of a run of {whole_s:.1f} s, {dispatch_s:.1f} s of it sending"
            )
        else:
            self.console.print(f"  the run took {whole_s:.1f} s and sent nothing")

    def _again(self, api: AirflowApi, approver: AirflowApi) -> None:
        before = mail.count(self.world.maildir)
        run_id = api.trigger(DAG, CONF)
        self._approve(approver, run_id)
        state = api.wait(DAG, run_id)
        after = mail.count(self.world.maildir)
        self.console.print(f"  the run ended as {state}; Maildir: {before:,} messages before, {after:,} after")
        if state != "success" or before != after:
            raise DemoError(f"triggering {SEND} again must send nothing:\n{api.explain(DAG, run_id)}")

    def _where_next(self) -> None:
        home = self.world.home
        self.console.print(
            Panel(
                f"make up           leaves all this running, with a campaign to trigger, approve, pause and stop\n"
                f"make demo         again: the same edition, and nobody gets it twice\n"
                f"snapshot          {home}/storage/snapshots/{CAMPAIGN}/{EDITION}/\n"
                f"received mail     {self.world.maildir}\n"
                f"how it works      docs/architecture.md; docs/operators.md; docs/data-engineers.md",
                title="Where to look next",
                expand=False,
            )
        )


def main() -> int:
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        Demo(demo_world(), console).run()
    except (DemoError, StackError, AirflowApiError) as error:
        console.print(f"\n[bold red]The demo failed:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped; `make demo` goes on where it ended")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
