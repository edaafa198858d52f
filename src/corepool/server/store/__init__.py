"""Durable state: tenants, keys, leases, models, the journal of intents, and the audit log.

It must not know devices, protocols or how decisions are made.
"""

from corepool.server.store.backups import Backup, backup, restore
from corepool.server.store.packages import Packages
from corepool.server.store.records import (
    ACTIVE,
    DONE,
    OPEN,
    REVOKED,
    VOID,
    AuditRow,
    Intent,
    KeyRow,
    LeaseRow,
    ModelRow,
    TenantRow,
)
from corepool.server.store.store import Store
from corepool.server.store.transaction import Transaction

__all__ = [
    "ACTIVE",
    "DONE",
    "OPEN",
    "REVOKED",
    "VOID",
    "AuditRow",
    "Backup",
    "Intent",
    "KeyRow",
    "LeaseRow",
    "ModelRow",
    "Packages",
    "Store",
    "TenantRow",
    "Transaction",
    "backup",
    "restore",
]
