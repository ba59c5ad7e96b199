"""Small bugs, put into the code one at a time, that the tests must notice.

Each module beside this one lists the bugs of one wing. Run by hand:

$ python -m tests.mutants              # all of them, about half a minute each
$ python -m tests.mutants training     # those of one wing
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One bug.

    Args:
        claim: What is wrong with the mutated code, in words.
        file: The file to change, from the root of the repository.
        old: Text that stands in the file exactly once.
        new: What replaces it.
        tests: What pytest is given; at least one of these tests must fail.
    """

    claim: str
    file: str
    old: str
    new: str
    tests: str
