"""One kind of error for everything that the user, not the program, has to correct."""

from __future__ import annotations

LONGEST = 300  # characters of a value that are repeated to the user


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def brief(error: BaseException) -> str:
    """What a library says of a failure, for a message of ours: its beginning, on one line."""
    return " ".join(str(error).split())[:160]


class InputError(Exception):
    """A setting or file that cannot be used; the text is one line naming key, value and hint.

    Args:
        key: the setting as the user would write it, for example ``data.n``.
        value: what was given.
        problem: what is wrong with it.
        hint: what to do instead, as an imperative.
    """

    def __init__(self, key: str, value: object, problem: str, hint: str) -> None:
        text = f"{_short(key)}={_short(value)}: {problem}; {hint}"
        # What a file says must not move the cursor or rename the window of a terminal.
        super().__init__("".join(c if c.isprintable() else "?" for c in " ".join(text.split())))
        self.key, self.value, self.problem, self.hint = key, value, problem, hint


class RunFailure(Exception):
    """Something outside the program ended a run (a full disk, a lost process): one line that says how to go on."""
