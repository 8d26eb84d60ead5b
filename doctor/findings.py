"""What a check finds: one line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What one check looked at, whether it is as it has to be, and what it saw or what to do."""

    check: str
    is_ok: bool
    said: str

    def __str__(self) -> str:
        return f"{'ok' if self.is_ok else 'to do'}  {self.check}: {self.said}"

    def as_json(self) -> dict[str, object]:
        """Return what `--json` prints."""
        return {"check": self.check, "ok": self.is_ok, "said": self.said}


def fine(check: str, said: str) -> Finding:
    """Return what is as it has to be."""
    return Finding(check, is_ok=True, said=said)


def to_do(check: str, said: str) -> Finding:
    """Return what somebody has to do."""
    return Finding(check, is_ok=False, said=said)
