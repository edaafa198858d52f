"""The event log: events as plain records and back, and the state that follows from a log.

It must not know where records are stored. Replaying the events of a hypervisor gives its state again, exactly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from typing import Any

from corepool.errors import ConfigError, HypervisorError
from corepool.hypervisor import events as ev
from corepool.hypervisor.model import Model
from corepool.hypervisor.settings import Settings
from corepool.hypervisor.state import Hypervisor

KINDS: dict[str, type[ev.Event]] = {kind.__name__: kind for kind in ev.Event.__subclasses__()}
_ENUMS: dict[str, type[Enum]] = {"sharing": ev.Sharing, "switching": ev.Switching}


def to_record(event: ev.Event) -> dict[str, Any]:
    """An event as JSON can hold it: its kind and its fields."""
    record: dict[str, Any] = {"event": type(event).__name__}
    for each in fields(event):
        value = getattr(event, each.name)
        if isinstance(value, Model):
            value = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(value).items()}
        elif isinstance(value, Enum):
            value = value.value
        record[each.name] = list(value) if isinstance(value, tuple) else value
    return record


def from_record(record: dict[str, Any]) -> ev.Event:
    """The event of a record. Raises HypervisorError for an unknown kind, and for wrong or missing fields."""
    try:
        values = dict(record)
        kind = KINDS[values.pop("event")]
        for name, value in values.items():
            if name in _ENUMS:
                values[name] = _ENUMS[name](value)
            elif isinstance(value, dict):
                values[name] = _model(value)
            elif isinstance(value, list):
                values[name] = tuple(value)
        return kind(**values)
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise HypervisorError(f"the log holds a record that is no event: {error!r}") from None


def _model(values: dict[str, Any]) -> Model:
    fit: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Model(**fit)


def replay(settings: Settings, events: Iterable[ev.Event]) -> Hypervisor:
    """A hypervisor that has seen these events; those that it refuses change nothing, as they did not then."""
    made = Hypervisor(settings)
    for event in events:
        try:
            made.handle(event)
        except HypervisorError:
            continue
    return made


def snapshot(hypervisor: Hypervisor) -> Any:
    """The whole state as plain data, to compare or to show."""
    return _plain(hypervisor.book)


def _plain(value: Any) -> Any:
    if isinstance(value, Model):
        return value.name
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        shown = (each for each in fields(value) if each.metadata.get("plain", True))
        return {each.name: _plain(getattr(value, each.name)) for each in shown}
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | deque):
        return [_plain(each) for each in value]
    return sorted(value) if isinstance(value, set | frozenset) else value
