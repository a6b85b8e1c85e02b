"""``make down``: end whatever `make up` or a killed demo left. ``python -m examples.demo.down``"""

import sys

from rich.console import Console

from examples.demo.world import World, demo_world


def down(world: World) -> list[str]:
    """Stop Airflow first (its tasks stop their agents), then the servers. Returns what is still alive: nothing."""
    world.stack.stop()
    world.services.stop()
    return [str(process) for process in (*world.stack.processes.alive(), *world.services.alive())]


def main() -> int:
    left = down(demo_world())
    Console().print("stopped" if not left else f"still alive: {', '.join(left)}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
