"""Who is signed in: an identity drawn at each sign-in, kept here and, signed, in a cookie.

Sessions live in the process: a restart signs everybody out, and what a cookie is signed with need not be kept anywhere. They
end by signing out, after a time without a page asked for, after a day at most, and as soon as the account is gone or has
another password.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from itsdangerous import BadSignature, Signer

from clickwake.dashboard.accounts import Account, Accounts, Role, Tenants
from stream.http.rates import Buckets

LONGEST_S = 24 * 3_600.0
SESSIONS_MAX = 1_000  # of all; beyond it the one unused for longest ends
ATTEMPTS = 5  # at once, of one name
ATTEMPT_EVERY_S = 60.0  # then one in so long: 1,440 guesses a day, of passwords of 15 characters
ADDRESS_ATTEMPTS = 30  # at once, of one address: who tries many names is held too
ADDRESS_ATTEMPT_EVERY_S = 5.0


class TooManyAttempts(RuntimeError):
    """Of this name or from this address; `wait_s` says when to try again."""

    def __init__(self, wait_s: int) -> None:
        super().__init__(f"too many attempts; try again in {wait_s} s")
        self.wait_s = wait_s


@dataclass
class Session:
    """Times are seconds of the clock."""

    account: Account
    since_s: float
    used_s: float


@dataclass(frozen=True)
class Visitor:
    """Who asks for a page. `session`: its identity; empty where nobody has to sign in. `tenants`: of the account."""

    name: str
    role: Role
    session: str = ""
    tenants: Tenants = None

    def tenant(self, asked: str | None, usual: str) -> str | None:
        """Whose page they get: the tenant's they ask for, None where they may not open it; where they ask for none, the
        usual one's, or that of the first they may open.

        >>> Visitor("ann", "admin").tenant("b", "a"), Visitor("ann", "admin").tenant(None, "a")
        ('b', 'a')
        >>> bob = Visitor("bob", "read", tenants=("b", "c"))
        >>> bob.tenant("c", "a"), bob.tenant("a", "a"), bob.tenant(None, "a"), bob.tenant(None, "c")
        ('c', None, 'b', 'c')
        """
        if asked is None:
            return usual if self.tenants is None or usual in self.tenants else self.tenants[0]
        return asked if self.tenants is None or asked in self.tenants else None


class Sessions:
    """All of one process."""

    def __init__(self, accounts: Accounts, idle_s: float, clock_s: Callable[[], float]) -> None:
        self.accounts, self.idle_s, self._clock_s = accounts, idle_s, clock_s
        self._signer = Signer(secrets.token_bytes(32), salt="session", digest_method=hashlib.sha256)
        self._open: OrderedDict[str, Session] = OrderedDict()  # used longest ago first
        self._of_name = Buckets(1 / ATTEMPT_EVERY_S, ATTEMPTS)
        self._of_address = Buckets(1 / ADDRESS_ATTEMPT_EVERY_S, ADDRESS_ATTEMPTS)

    def admit(self, name: str, address: str) -> None:
        """Count an attempt. Raises TooManyAttempts, whether the password would be right or not; then none is counted."""
        now_s = self._clock_s()
        wait_s = max(self._of_name.wait_s(name, 1, now_s), self._of_address.wait_s(address, 1, now_s))
        if wait_s > 0:
            raise TooManyAttempts(math.ceil(wait_s))
        self._of_name.take(name, 1, now_s)
        self._of_address.take(address, 1, now_s)

    def open(self, account: Account) -> str:
        """The cookie of a new session."""
        ident, now_s = secrets.token_urlsafe(32), self._clock_s()
        self._open[ident] = Session(account, now_s, now_s)
        while len(self._open) > SESSIONS_MAX:
            self._open.popitem(last=False)
        return self._signer.sign(ident).decode()

    def visitor(self, cookie: str | None) -> Visitor | None:
        """Whose cookie it is; a page was asked for with it, so the session is in use. Raises BadAccounts."""
        try:
            ident = self._signer.unsign(cookie or "").decode()
        except BadSignature:
            return None
        session = self._alive(ident)
        if session is None:
            return None
        session.used_s = self._clock_s()
        self._open.move_to_end(ident)
        account = session.account
        return Visitor(account.name, account.role, ident, account.tenants)

    def holds(self, visitor: Visitor) -> bool:
        """Whether a page that was given to the visitor may still show and do things; asking is no use of the session.
        Raises BadAccounts."""
        return not visitor.session or self._alive(visitor.session) is not None

    def close(self, visitor: Visitor) -> None:
        self._open.pop(visitor.session, None)

    def _alive(self, ident: str) -> Session | None:
        session, now_s = self._open.get(ident), self._clock_s()
        if session is None:
            return None
        over = now_s - session.used_s > self.idle_s or now_s - session.since_s > LONGEST_S
        if over or self.accounts.known().get(session.account.name) != session.account:
            del self._open[ident]
            return None
        return session
