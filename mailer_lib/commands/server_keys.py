"""``mailfleet server rotate-keys``: a server's DKIM keys, or with ``--host`` its certificate and who may log in."""

from typing import Annotated

import typer

from mailer_lib.commands.context import console, open_context
from mailer_lib.commands.errors import WRONG_USAGE, CommandError
from mailer_lib.commands.server_life import AdminUser, Check_, Name, print_results, show_event


def rotate_keys(
    name: Name,
    *,
    host: Annotated[
        bool, typer.Option("--host", help="Its TLS certificate, and who may log in, instead of its DKIM keys.")
    ] = False,
    next_login_key: Annotated[
        str | None, typer.Option(help="With --host: the private key (env:NAME or file:PATH) to let in beside ours.")
    ] = None,
    admin_user: AdminUser = "root",
    check: Check_ = False,
) -> None:
    """The next step to a new DKIM key for this server; run it again when its record is published.

    A key is made and its record printed; it signs once it is published; the old one stays published until mail that it
    signed is delivered. Exit code 1 while something is to be published.
    """
    from mailer_lib.dispatch.key_rotation import Step, rotate
    from mailer_lib.fleet.upkeep import Upkeep

    if not host and (check or next_login_key is not None):
        raise CommandError("--check and --next-login-key go with --host", WRONG_USAGE)
    with open_context() as context:
        if host:
            upkeep = Upkeep(context.engine, context.settings, context.actor, admin_user, show_event, check)
            print_results(upkeep.renew_host_keys([name], next_login_key=next_login_key))
            return
        done = rotate(context.engine, context.settings, name, actor=context.actor)
    for one in done:
        console().print(one.sentence, markup=False, soft_wrap=True)
        if one.zone_line:
            console().print(one.zone_line, markup=False, soft_wrap=True)
    if any(one.step is Step.PUBLISH for one in done):
        raise typer.Exit(1)
