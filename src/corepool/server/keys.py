"""API keys: made, hashed, recognised; guessing is slowed down.

It must not know tenants' rights or where keys are stored; it is told which keys there are.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
import string
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from corepool.errors import AuthenticationError, TooManyRequestsError
from corepool.server.rates import Buckets, Clock, Rate
from corepool.server.store.records import ACTIVE, KeyRow

ALPHABET = string.ascii_letters + string.digits
ID_LENGTH = 12  # 71 bits: no two are ever the same
SECRET_LENGTH = 43  # 256 bits: the hash is there against a stolen database, not against guessing
FORM = re.compile(rf"cp_([A-Za-z0-9]{{{ID_LENGTH}}})_([A-Za-z0-9]{{{SECRET_LENGTH}}})")

# A profile that OWASP lists as equal in strength to 19 MiB with 2 passes, with the least memory: checks of several
# keys at once must not weigh on the server.
MEMORY_KIB, PASSES, LANES = 7168, 5, 1

VERIFIED_KEPT = 4096
HASHING_AT_ONCE = 2
HASHING_WAITING = 64
GUESSES = Rate(per_s=1.0, burst=20.0)
REFUSAL = "the API key is missing, unknown or revoked: send 'Authorization: Bearer cp_...'"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key as it is shown once. ``text`` is what the client sends."""

    key_id: str
    text: str

    def __repr__(self) -> str:
        return f"NewKey({self.key_id})"


def make_key() -> NewKey:
    """A key that nobody has."""
    key_id, secret = ("".join(secrets.choice(ALPHABET) for _ in range(n)) for n in (ID_LENGTH, SECRET_LENGTH))
    return NewKey(key_id, f"cp_{key_id}_{secret}")


def parse(header: str | None) -> NewKey | None:
    """The key in an Authorization header, or None if there is none of the right form."""
    scheme, _, text = (header or "").strip().partition(" ")
    found = FORM.fullmatch(text.strip()) if scheme.lower() == "bearer" else None
    return NewKey(found[1], found[0]) if found else None


class Hasher:
    """argon2id. Hashing takes about 20 ms of processor time and 7 MiB; few run at once, a few more wait."""

    def __init__(self) -> None:
        from argon2 import PasswordHasher

        self._argon = PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES)
        self._running = threading.BoundedSemaphore(HASHING_AT_ONCE)
        self._waiting = threading.BoundedSemaphore(HASHING_AT_ONCE + HASHING_WAITING)
        self.nobody = self.hash(make_key().text)

    def hash(self, text: str) -> str:
        return self._argon.hash(text)

    def matches(self, stored: str, text: str) -> bool:
        """Whether the text is the one hashed. Raises TooManyRequestsError if too many wait for that already."""
        from argon2.exceptions import InvalidHashError, VerificationError

        if not self._waiting.acquire(blocking=False):
            raise TooManyRequestsError("too many keys are being checked: try again in a second")
        try:
            with self._running:
                return self._argon.verify(stored, text)
        except (VerificationError, InvalidHashError):
            return False
        finally:
            self._waiting.release()


class KeyRing:
    """All keys in memory, those seen lately by a fingerprint, so that a request costs a hash of microseconds.

    Safe from any thread. ``rows`` are replaced as a whole: readers never wait for writers.
    """

    def __init__(self, hasher: Hasher, clock: Clock = time.monotonic) -> None:
        self._hasher = hasher
        self._rows: Mapping[str, KeyRow] = MappingProxyType({})
        self._pepper = secrets.token_bytes(32)
        self._verified: OrderedDict[bytes, KeyRow] = OrderedDict()
        self._lock = threading.Lock()
        self._guesses = Buckets(clock=clock)

    @property
    def rows(self) -> Mapping[str, KeyRow]:
        return self._rows

    def replace(self, rows: Mapping[str, KeyRow]) -> None:
        """From now on these keys hold, and no other."""
        with self._lock:
            self._rows = MappingProxyType(dict(rows))
            for fingerprint, row in list(self._verified.items()):
                if self._rows.get(row.key_id) != row:
                    del self._verified[fingerprint]

    def recall(self, header: str | None) -> KeyRow | None:
        """The key of this header if it was verified lately and still holds. Takes microseconds."""
        key = parse(header)
        if key is None:
            return None
        row = self._verified.get(self._fingerprint(key))
        return row if row is not None and self._holds(row) else None

    def verify(self, header: str | None, source: str) -> KeyRow:
        """The key of this header. ``source`` is the address it came from.

        Missing, unknown, wrong and revoked keys take the same time and raise the same AuthenticationError. After too
        many of them from one source, TooManyRequestsError, except for keys that were verified lately.
        """
        known = self.recall(header)
        if known is not None:
            return known
        network = network_of(source)
        wait = self._guesses.take(network, GUESSES)
        if wait:
            raise TooManyRequestsError("too many wrong keys came from this address: wait", max(wait, 1.0))
        key = parse(header) or NewKey("", "cp_")
        row = self._rows.get(key.key_id)
        try:
            matches = self._hasher.matches(row.hash if row else self._hasher.nobody, key.text)
        except TooManyRequestsError:
            self._guesses.give_back(network, GUESSES)
            raise
        with self._lock:
            if row is None or not matches or not self._holds(row):
                raise AuthenticationError(REFUSAL)
            self._verified[self._fingerprint(key)] = row
            if len(self._verified) > VERIFIED_KEPT:
                self._verified.popitem(last=False)
        self._guesses.give_back(network, GUESSES)
        return row

    def _holds(self, row: KeyRow) -> bool:
        kept = self._rows.get(row.key_id)
        return row.state == ACTIVE and (kept is row or kept == row)

    def _fingerprint(self, key: NewKey) -> bytes:
        return hashlib.blake2b(key.text.encode(), key=self._pepper, digest_size=32).digest()


def network_of(source: str) -> str:
    """What counts as one guesser: an IPv4 address, or the /64 network that one IPv6 host is usually given."""
    try:
        address = ipaddress.ip_address(source.strip("[]").partition("%")[0])
    except ValueError:
        return source[:100]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
