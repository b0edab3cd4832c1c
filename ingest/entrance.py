"""The decision about a body: the limit of its account first, then its level and the bucket of all accounts."""

from collections.abc import Callable

from ingest.account_counter import AccountCounter
from ingest.accounts import Accounts
from ingest.admission import Admission
from ingest.errors import RateLimitedError
from pipeline.errors import SluiceError
from pipeline.names import LEVEL_HIGHEST, Level


class Entrance:
    """Admits the bodies of one process, and counts what each account offers. For the event loop only."""

    def __init__(self, admission: Admission, accounts: Accounts, *, has_levels: bool = False) -> None:
        self._admission = admission
        self._accounts = accounts
        self._has_levels = has_levels
        # With neither levels nor accounts, a decision is this subtraction alone; else None.
        self.take_now: Callable[[int], bool] | None = None
        # Otherwise it also counts what the account offers. Not methods of this class, which would be second calls.
        self.admit_now = admission.admit_now
        self.has_token = admission.has_token
        self.note_limits()

    def note_limits(self) -> None:
        """Choose how bodies are admitted, after the limits of accounts have changed."""
        is_plain = not (self._has_levels or self._accounts.is_reporting)
        self.take_now = self._admission.take_now if is_plain else None

    @property
    def admits_all_levels(self) -> bool:
        """Whether no level is known to be kept out by its reserve."""
        return self._admission.admits_all_levels

    def seconds_closed(self, level: Level) -> float:
        """Seconds for which the bodies of all accounts at this level and below are refused, as far as known."""
        return self._admission.wait_seconds(1, level)

    def seconds_closed_for(self, tally: AccountCounter) -> float:
        """Seconds for which the bodies of an account are refused for its own limit."""
        return self._accounts.wait_seconds(tally)

    def refusal(self, level: Level, tally: AccountCounter | None) -> RateLimitedError | None:
        """The rejection of any body of an account (None: of all), if it is known without the body; else None."""
        if tally is not None and tally.hold is not None:
            refusal = self._accounts.refusal(tally, seconds_min=self._admission.wait_seconds(1, level))
            if refusal is not None:
                return refusal
        return self._admission.refusal(1, level)

    async def admit(self, tally: AccountCounter, count: int, level: Level = LEVEL_HIGHEST) -> None:
        """Admit a body that `admit_now` did not admit. Raises RateLimitedError, StoreUnavailableError."""
        self._accounts.take(tally, count)
        try:
            await self._admission.take(count, level)
        except SluiceError:
            self._accounts.give_back(tally, count)
            raise

    def give_back(self, tally: AccountCounter, count: int) -> None:
        """Give back the tokens of admitted events that are certainly not stored: their repeat pays for them again."""
        self._admission.give_back(count)
        self._accounts.give_back(tally, count)
