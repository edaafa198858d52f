"""Says who asks: known keys at once, others on a worker thread, as checking a hash takes long on purpose.

It must not know transports.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from corepool.server.api import Identity
from corepool.server.tenants import Tenants

WORKERS = 2  # guessing must not take all of the processor


class KeyAccess:
    """api.Access over tenants and their keys."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="keys")

    async def identify(self, authorization: str | None, source: str) -> Identity:
        """See api.Access."""
        who = self._tenants.recognise(authorization)
        if who is None:
            loop = asyncio.get_running_loop()
            who = await loop.run_in_executor(self._workers, self._tenants.authenticate, authorization, source)
        return who

    def admit(self, who: Identity, body_bytes: int) -> int:
        """See api.Access."""
        return self._tenants.admit(who, body_bytes)

    def in_flight_limit(self, tenant: str) -> int:
        """See api.Access."""
        return self._tenants.in_flight_limit(tenant)

    def knows(self, tenant: str) -> bool:
        """See api.Access."""
        return self._tenants.knows(tenant)

    def close(self) -> None:
        """Wait for checks under way."""
        self._workers.shutdown()
