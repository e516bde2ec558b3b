"""What can go wrong, as types.

Every error that a user can cause or mend is an `NftproxyError`: its text is one line that says what is wrong and where, its
`hint` one line that says what to do. The command line prints both and exits with 2; a traceback means a bug of ours.
"""

_LONGEST = 400  # characters


class NftproxyError(Exception):
    """The base of all errors that are shown to users as one line, with a hint where there is one."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def brief(text: str) -> str:
    """Cut the middle out of a message that quotes an input, which may be of any length; what is wrong and where stand at the ends."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 2 :]}"


class AddressError(NftproxyError):
    """A text that is not the address or CIDR it should be."""


class ConfigError(NftproxyError):
    """Settings that cannot be used; `problems` has one line for each, all found at once."""

    def __init__(self, problems: list[str], *, hint: str = "") -> None:
        super().__init__("; ".join(problems), hint=hint)
        self.problems = problems


class SourceError(NftproxyError):
    """An input that cannot be read or decoded; the text names file, document, object and field."""


class KernelError(NftproxyError):
    """Something the kernel or libnftables refused; nothing was changed."""


class MissingError(KernelError):
    """A transaction named something that is not there any more (ENOENT): our picture of the table is out of date."""


class ExistsError(KernelError):
    """A transaction added something that is there with another value (EEXIST): our picture of the table is out of date."""


class BusyError(KernelError):
    """Others change nftables so often that it cannot be read as one picture."""


class BlockedError(KernelError):
    """The library must not be called: another program's table would end this process."""


class UnusableError(NftproxyError):
    """This machine lacks what is needed: permission, library, kernel feature; the hint names the command that mends it."""
