"""The table of what was found out: 80 columns."""

from collections.abc import Iterator

from billing.tables import below, fit, many
from probe.questions import Finding

NAME, ANSWER = 26, 34
UNKNOWN = "could not be found out"
VERDICTS = {True: "agrees", False: "DIFFERS", None: "unknown"}


def rows(findings: list[Finding]) -> Iterator[str]:
    """Yield the lines of the table: a question's name, its answer, whether the service agrees."""
    yield row("question", "answer", "the service")
    for finding in findings:
        question = finding.question
        yield row(question.name, finding.answer or UNKNOWN, VERDICTS[finding.agrees])
        yield from below(question.asks)
        yield from below(f"{'seen' if finding.answer else 'why not'}: {finding.seen}")
        yield from below(f"the service assumes {question.assumes}")
        yield from below(f"for your money: {finding.means}")


def row(name: str, answer: str, verdict: str) -> str:
    """Return a line of three columns."""
    return f"{fit(name, NAME)} {fit(answer, ANSWER)} {verdict}"


def summary(findings: list[Finding]) -> str:
    """Say in a sentence what came out."""
    agreeing = sum(finding.agrees is True for finding in findings)
    differing = sum(finding.agrees is False for finding in findings)
    unknown = len(findings) - agreeing - differing
    said = f"{many(len(findings), 'question')}: the service agrees with {agreeing}"
    return f"{said}, differs from {differing}; {unknown} {UNKNOWN}"
