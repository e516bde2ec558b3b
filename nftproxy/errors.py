"""The errors, as types.

Every error that a user can cause or correct is an `NftproxyError`: its text is one line that says
what is wrong and where, its `hint` one line that says what to do. The command line prints both and
exits with 2; a traceback means a bug of nftproxy.
"""

_LONGEST = 400  # characters


class NftproxyError(Exception):
    """The base of all errors that users see as one line, with a hint where there is one."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def with_hint(self) -> str:
        """The text and the hint in one line, for places that show a single one."""
        return f"{self}; {self.hint}" if self.hint else str(self)


def brief(text: str) -> str:
    """Remove the middle of a long message that quotes an input.

    Fault and place stand at its ends.
    """
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 2 :]}"


class AddressError(NftproxyError):
    """A text that is not an address or CIDR."""


class ConfigError(NftproxyError):
    """Settings that cannot be used; `problems` has one line for each, all found at once."""

    def __init__(self, problems: list[str], *, hint: str = "") -> None:
        super().__init__("; ".join(problems), hint=hint)
        self.problems = problems


class SourceError(NftproxyError):
    """An input that cannot be read or decoded; the text names file, document, object and field."""


class KernelError(NftproxyError):
    """The kernel or libnftables refused something; nothing was changed."""


class MissingError(KernelError):
    """A transaction named something that was deleted (ENOENT).

    Our picture of the table is out of date.
    """


class ExistsError(KernelError):
    """A transaction added something that exists with another value (EEXIST).

    Our picture of the table is out of date.
    """


class BusyError(KernelError):
    """Other programs change nftables too often for a consistent reading."""


class BlockedError(KernelError):
    """The library must not be called: another program's table would crash this process."""


class UnusableError(NftproxyError):
    """This machine lacks what is needed.

    Permission, library, kernel feature; the hint names the command that helps.
    """
