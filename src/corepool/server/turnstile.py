"""Who may come in next, decided before anything of a request but its beginning is read: tenants share what the server's
own process can do, however many requests one of them sends.

It must not know HTTP, gRPC, keys or devices; a tenant is a name. Everything happens in one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable

from corepool.errors import TooManyRequestsError

READ_ALONE = 16  # bodies of a tenant that are read at a time
READ_AMONG_OTHERS = 2  # while others ask too
SLOW_S = 0.05  # a body that takes longer is slow to come, and takes little of the process
CROWDED_S = 1.0  # others ask too, if they did so long ago at most
REFUSALS_AT_ONCE, REFUSALS_PER_S = 20, 100.0  # of one sender; further ones wait
LONGEST_WAIT_S = 1.0
KEPT = 10_000  # senders whose refusals are remembered

Clock = Callable[[], float]


class Turnstile:
    """Counts the requests between their beginning and their answer, at most ``places`` of all tenants. One that has
    others beside it gets no more than eight times what is left free, so that there is room for whoever comes next."""

    def __init__(self, places: int, clock: Clock = time.monotonic) -> None:
        self._places = places
        self._clock = clock
        self._inside: Counter[str] = Counter()
        self._all = 0
        self._latest = ""  # who came last
        self._others_at = float("-inf")  # when somebody else than the one before came last
        self._reading: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def enter(self, tenant: str, most: int) -> None:
        """A request of a tenant that may have ``most`` begins; ``leave`` must follow. Raises TooManyRequestsError."""
        if tenant != self._latest:
            self._latest, self._others_at = tenant, self._clock()
        own, free = self._inside[tenant], self._places - self._all
        if own >= most:
            raise TooManyRequestsError(f"{most} requests of this tenant are in flight already: wait for answers", 1.0)
        if free <= 0 or (own >= 8 * free and self._crowded()):
            raise TooManyRequestsError(f"{self._places} requests are in flight already: try again soon", 1.0)
        self._inside[tenant] = own + 1
        self._all += 1

    def leave(self, tenant: str) -> None:
        """A request is over."""
        self._all -= 1
        if self._inside[tenant] > 1:
            self._inside[tenant] -= 1
        else:
            del self._inside[tenant]

    async def read(self, tenant: str) -> Callable[[], None]:
        """Wait until a body of the tenant may be read; call what this returns once that is done, or given up. A body
        that is slow to come makes room for the next one."""
        if self.full(tenant):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(tenant, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._done(tenant)
                else:
                    self._forget(tenant, turn)
                raise
        else:
            self._reading[tenant] += 1
        over = False

        def done() -> None:
            nonlocal over
            if not over:
                over = True
                late.cancel()
                self._done(tenant)

        late = asyncio.get_running_loop().call_later(SLOW_S, done)
        return done

    def full(self, tenant: str) -> bool:
        """Whether a body of the tenant has to wait for its turn."""
        return self._reading.get(tenant, 0) >= self._most() or tenant in self._waiting

    def _most(self) -> int:
        return READ_AMONG_OTHERS if self._crowded() else READ_ALONE

    def _crowded(self) -> bool:
        return self._clock() - self._others_at < CROWDED_S

    def _done(self, tenant: str) -> None:
        """A body is read: the tenant's next ones may be, in the order of their coming."""
        self._reading[tenant] -= 1
        waiting = self._waiting.get(tenant)
        while waiting and self._reading[tenant] < self._most():
            turn = waiting.popleft()
            if not turn.done():
                self._reading[tenant] += 1
                turn.set_result(None)
        if waiting is not None and not waiting:
            del self._waiting[tenant]
        if not self._reading[tenant]:
            del self._reading[tenant]

    def _forget(self, tenant: str, turn: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(tenant)
        if waiting is not None and turn in waiting:
            waiting.remove(turn)
            if not waiting:
                del self._waiting[tenant]


class Pace:
    """How long a refusal should wait: whoever asks again at once, whatever he is told, must not take the processor."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._next: OrderedDict[str, float] = OrderedDict()

    def wait_s(self, sender: str) -> float:
        """Seconds until the sender may be told of one more refusal; each call counts one."""
        now = self._clock()
        turn = max(self._next.pop(sender, 0.0), now - REFUSALS_AT_ONCE / REFUSALS_PER_S)
        self._next[sender] = min(turn + 1 / REFUSALS_PER_S, now + LONGEST_WAIT_S)
        if len(self._next) > KEPT:
            self._next.popitem(last=False)
        return max(turn - now, 0.0)
