"""What `flask audit` tells those who watch it: invoices, rows, and money by currency."""

from audit import pricing
from audit.report import Sums
from audit.rows import GAP, IDLE, LINE, NOBODY, OVERLAP
from service.watching import Figure

KINDS = (LINE, GAP, NOBODY, OVERLAP, IDLE)


def figures(sums: Sums, failed: int) -> list[Figure]:
    """Return the sums of an audit, of which so many things could not be read."""
    counts = sums.counts
    states = {"agree": sums.agreeing, "differ": counts["differing"]}
    states |= {"can be mended": counts["mendable"], "unknown": counts["unknown"]}
    found = [Figure("failed", "What could not be read", failed)]
    for state, count in states.items():
        found.append(Figure("invoices", "Invoices by what was found", count, {"state": state}))
    for kind in KINDS:
        label, differing = {"kind": kind}, counts[f"differing {kind}"]
        found.append(Figure("rows", "Rows by kind", counts[kind], label))
        found.append(Figure("differing_rows", "Those with units missing or over", differing, label))
    return [*found, *money_figures(sums)]


def money_figures(sums: Sums) -> list[Figure]:
    """Return the money of the rows that differ, by kind and currency, where a price tells it."""
    found = []
    for (kind, currency), money in sorted(sums.money.items()):
        if currency:
            labels = {"kind": kind, "currency": currency}
            for name, amount in (("missing", money.missing), ("over", money.over)):
                # Only what is shown becomes a float.
                major = float(pricing.amount_text(amount, currency))
                about = "Money in the major unit that is not billed, or billed too much"
                found.append(Figure(f"{name}_money", about, major, labels))
    return found
