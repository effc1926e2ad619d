"""What became of the images that were offered to a gallery."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """Counts of one `add` or `sync`.

    Attributes:
        added (`int`): images that are new.
        changed (`int`): images whose file has other content than last time; encoded again.
        unchanged (`int`): images that the gallery had already.
        removed (`int`): rows whose file has vanished; by `sync` only.
        opted_out (`int`): images that the opt-out list keeps out.
        skipped (`list[tuple[str, str]]`): `(uri, reason)` of each image that cannot be read.
    """

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    opted_out: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def merge(self, other: "Report") -> None:
        """Add the counts of another process."""
        for name in ("added", "changed", "unchanged", "removed", "opted_out"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.skipped += other.skipped

    def __str__(self) -> str:
        counts = [(name, getattr(self, name)) for name in ("added", "changed", "unchanged", "removed", "opted_out")]
        parts = [f"{count:,} {name.replace('_', ' ')}" for name, count in counts if count or name == "added"]
        return ", ".join([*parts, *([f"{len(self.skipped):,} skipped"] if self.skipped else [])])
