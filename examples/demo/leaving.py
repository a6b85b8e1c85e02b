"""One person leaves in the middle of a run, through mail that they received before.

They got the letter (campaign *welcome*), their spring sale is frozen and still to be sent, and they press *Unsubscribe*
in the letter: their provider POSTs to the link in its List-Unsubscribe header (RFC 8058).
"""

from dataclasses import dataclass

from sqlalchemy import Engine

from examples.demo import mail
from examples.demo.watch import far_from_their_turn
from examples.demo.world import World
from mailer_lib.contacts.address import normalise

LETTER = "welcome#1"


@dataclass(frozen=True)
class Leaver:
    address: str
    status: int  # HTTP status of the POST


def letters(world: World) -> dict[str, mail.Received]:
    """The letters received, by normalised address."""
    return {normalise(message.recipient).normalised: message for message in mail.received(world.maildir, LETTER)}


def leave_in_mid_run(
    world: World, engine: Engine, send_ref: str, candidates: dict[str, mail.Received]
) -> Leaver | None:
    """Let the one leave whose turn is farthest away; None when everybody's turn has come."""
    waiting = far_from_their_turn(engine, world.settings.identity(), send_ref, list(candidates))
    if not waiting:
        return None
    letter = candidates[waiting[0]]
    return Leaver(letter.recipient, mail.unsubscribe(letter))
