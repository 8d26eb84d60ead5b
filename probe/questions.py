"""What is asked of Stripe, what each answer means for the money, and what came out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

# Ids of Stripe's, of which none shall stand in what others get to read.
AN_ID = re.compile(r"\b([a-z]+(?:_[a-z]+)*_)[A-Za-z0-9]*\d[A-Za-z0-9]*\b")


class NotFoundOut(Exception):
    """Say why a question has no answer: never a wrong one instead."""


class Answer(NamedTuple):
    """One of a question's answers, and what was seen besides."""

    key: str
    seen: str = ""


@dataclass(frozen=True)
class Question:
    """A question, what the service assumes, and by each answer what it means for the money.

    Under an answer of `right` the service bills as it says; under another one it does not.
    """

    name: str
    asks: str
    assumes: str
    means: Mapping[str, str]
    right: frozenset[str]


@dataclass(frozen=True)
class Finding:
    """What came of a question after some seconds: an answer, or else the reason why not."""

    question: Question
    answer: str | None
    seen: str
    seconds: float

    @property
    def agrees(self) -> bool | None:
        """Say whether the service is right under the answer; None if there is none."""
        return None if self.answer is None else self.answer in self.question.right

    @property
    def means(self) -> str:
        """Return what the answer means for the money."""
        if self.answer is None:
            return "unknown as before"
        return self.question.means[self.answer]

    def as_json(self) -> dict[str, object]:
        """Return what `--json` writes."""
        return {
            "name": self.question.name,
            "question": self.question.asks,
            "answer": self.answer,
            "seen": self.seen,
            "assumes": self.question.assumes,
            "agrees": self.agrees,
            "means": self.means,
            "seconds": round(self.seconds, 1),
        }


def settle_on(question: Question, answer: Answer) -> Answer:
    """Return an answer if it is one that the question knows. Raises NotFoundOut."""
    if answer.key not in question.means:
        raise NotFoundOut(f"an answer that nobody expected: {answer.key}. {answer.seen}".strip())
    return answer


def without_ids(text: str) -> str:
    """Return a text in which each id is cut down to its kind."""
    return AN_ID.sub(r"\1…", text)
