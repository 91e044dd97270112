"""Counts and sizes in words."""

GIB = 2**30


def with_labels(labels: bool) -> str:
    """Say whether labels are used."""
    return "with" if labels else "without"


def many(count: int, what: str) -> str:
    """Count things, one or many."""
    return f"{count} {what}{'s' * (count != 1)}"


def millions(count: int) -> str:
    """Show a number of parameters."""
    return f"{count} parameters" if count < 1e6 else f"{count / 1e6:.3g} million parameters"


def macs(count: int) -> str:
    """Show a number of multiply-adds."""
    if count < 1e9:
        return f"{count / 1e6:.3g} million multiply-adds"
    return f"{count / 1e9:.3g} billion multiply-adds"


def size(count: int) -> str:
    """Show a number of bytes."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
