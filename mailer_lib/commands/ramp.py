"""A warm-up ramp as an operator types it."""

from mailer_lib.fleet.names import FleetError


def parse_ramp(words: list[str]) -> tuple[int, ...] | None:
    """Numbers, one for each day; `default`: None.

    Raises:
        FleetError: neither.
    """
    if words == ["default"]:
        return None
    for day, word in enumerate(words, 1):
        if not word.isdecimal():
            raise FleetError(f"day {day} of the ramp: {word!r} isn't a number of messages; or write `default` alone")
    return tuple(int(word) for word in words)
