"""Who holds the sends of a campaign, for executors that know better than the clock whether a holder still lives."""

from collections.abc import Callable

from sqlalchemy import Engine, select

from mailer_lib.database.engine import read
from mailer_lib.database.schema import campaigns, sends
from mailer_lib.dispatch.sends import release


def free_claims(engine: Engine, campaign: str, has_ended: Callable[[str], bool]) -> list[str]:
    """Free every claim on a send of ``campaign`` whose holder ``has_ended``; returns those claims.

    A claim that is taken over in the same moment is left alone: ``release`` compares before it frees.
    """
    with read(engine) as connection:
        held = connection.execute(
            select(sends.c.id, sends.c.claim)
            .join_from(sends, campaigns)
            .where(campaigns.c.name == campaign, sends.c.claim.is_not(None))
        ).all()
    dead = [(send_id, claim) for send_id, claim in held if has_ended(claim)]
    for send_id, claim in dead:
        release(engine, send_id, claim)
    return [claim for _, claim in dead]
