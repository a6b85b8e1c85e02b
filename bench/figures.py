"""One line for each figure: ``figure NAME VALUE UNIT bar OP N ok|short``, or without a bar."""

from dataclasses import dataclass, field


@dataclass
class Figures:
    short: list[str] = field(default_factory=list)

    def note(self, name: str, value: float | str, unit: str = "") -> None:
        """A figure without a bar."""
        print(" ".join(part for part in ("figure", name, _plain(value), unit) if part), flush=True)

    def at_least(self, name: str, value: float, unit: str, bar: float) -> None:
        ok = value >= bar
        print(f"figure {name} {_plain(value)} {unit} bar >= {_plain(bar)} {'ok' if ok else 'short'}", flush=True)
        if not ok:
            self.short.append(name)

    def at_most(self, name: str, value: float, unit: str, bar: float) -> None:
        ok = value <= bar
        print(f"figure {name} {_plain(value)} {unit} bar <= {_plain(bar)} {'ok' if ok else 'short'}", flush=True)
        if not ok:
            self.short.append(name)

    def exit_status(self) -> int:
        for name in self.short:
            print(f"short: {name}")
        return 1 if self.short else 0


def _plain(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"
