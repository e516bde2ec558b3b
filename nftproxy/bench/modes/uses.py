"""Things that several services share, such as an address, and their first and last user."""

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Thing = TypeVar("Thing", bound=Hashable)


class Uses(Generic[Thing]):
    """The number of users of each thing."""

    def __init__(self) -> None:
        self._users: Counter[Thing] = Counter()

    def exchange(
        self, new: Iterable[Thing], old: Iterable[Thing]
    ) -> tuple[list[Thing], list[Thing]]:
        """Count added and removed users.

        Return things that got their first user, and things that lost their last.
        """
        new, old = list(new), list(old)
        touched = dict.fromkeys([*new, *old])
        before = {thing: self._users[thing] for thing in touched}
        self._users.update(new)
        self._users.subtract(old)
        first = [thing for thing in touched if self._users[thing] and not before[thing]]
        last = [thing for thing in touched if before[thing] and not self._users[thing]]
        for thing in touched:
            if not self._users[thing]:
                del self._users[thing]
        return first, last
