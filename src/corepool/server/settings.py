"""Settings of the server: one TOML file, the environment and flags, all with the same names and types.

It must not know the parts that are set. Whatever is set later in this order holds: file, COREPOOL_<KEY>, flag. A key
inside a table is COREPOOL_<TABLE>__<KEY> in the environment and --<table>-<key> as a flag.
"""

from __future__ import annotations

import os
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from corepool.errors import ConfigError

PREFIX = "COREPOOL_"
OTHERS = ("DEBUG", "URL", "KEY", "TENANT", "SETTINGS")  # COREPOOL_... that other parts read, or that names the file

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1, le=1 << 62)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
HIDDEN = "**********"


class Table(BaseModel):
    """A table of settings: unknown keys are refused, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _one_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """In a file, true is no number. An empty text stands for what is not set, and is no path."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind in (int, float):
            raise PydanticCustomError("no_number", "Input should be a number")
        if value == "" and type(None) in typing.get_args(kind):
            return None
        if value == "" and kind is Path:
            raise PydanticCustomError("no_path", "Input should be a path")
        return value


class Limits(Table):
    """What one request, client or tenant may take."""

    body_bytes: Count = Field(default=64 << 20, description="Largest body of a request")
    upload_bytes: Count = Field(default=1 << 30, description="Largest uploaded model or calibration file")
    stored_bytes: Count = Field(default=8 << 30, description="Uploaded and compiled files of one tenant, together")
    headers: Count = Field(default=100, description="Headers of a request")
    header_bytes: Count = Field(default=32 << 10, description="Request line and headers together")
    connections: Count = Field(default=1024, description="Open connections for REST")
    held_bytes: Count = Field(default=4 << 30, description="Bodies in memory at a time, of all tenants (REST)")
    tenant_held_bytes: Count = Field(default=1 << 30, description="Bodies in memory at a time, of one tenant (REST)")
    in_flight: Count = Field(default=256, description="Inferences under way, of all tenants")
    tenant_in_flight: Count = Field(default=64, description="Inferences under way, of one tenant")
    header_timeout_s: Seconds = Field(default=10.0, description="Until a connection has sent a request's headers")
    body_timeout_s: Seconds = Field(default=60.0, description="Until a request's body has arrived")
    upload_timeout_s: Seconds = Field(default=3600.0, description="Until an uploaded file has arrived")
    idle_timeout_s: Seconds = Field(default=75.0, description="Idle connections are closed after")
    drain_timeout_s: Seconds = Field(default=30.0, description="For what is in flight when the server is asked to end")


class Compilation(Table):
    """What the process that compiles an uploaded model may take."""

    cpu_s: Count = Field(default=1800, description="Processor time")
    wall_s: Seconds = Field(default=3600.0, description="Wall time")
    memory_bytes: Count = Field(default=8 << 30, description="Address space")
    file_bytes: Count = Field(default=2 << 30, description="Largest file that it may write")
    files: Annotated[int, Field(ge=32)] = Field(default=128, description="Open files")
    parallel: Count = Field(default=1, description="Compilations at a time")
    waiting: Count = Field(default=16, description="Compilations of one tenant that wait or run")
    kept: Count = Field(default=1000, description="Compilations whose outcome is remembered")


class Rates(Table):
    """How often a tenant may ask, unless its own settings say otherwise."""

    requests_per_s: Annotated[float, Field(gt=0)] = Field(default=1000.0, description="Requests a second of one tenant")
    burst: Count = Field(default=2000, description="Requests that may come at once after a pause")


class Log(Table):
    """What is written down, to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe that is written"
    )
    format: Literal["json", "console"] = Field(default="json", description="One JSON object a line, or for people")


class Metrics(Table):
    """What can be watched."""

    tenants: Count = Field(default=100, description="Tenants with a label of their own; the others are 'other'")
    nv_names: bool = Field(default=False, description="Also show metrics under nv_inference_* names")


class Settings(Table):
    """Everything that can be set. Made by ``load_settings``."""

    host: str = Field(default="127.0.0.1", description="Address to listen on")
    rest_port: Port = Field(default=8000, description="Port of REST; 0 for any that is free")
    grpc_port: Port = Field(default=8001, description="Port of gRPC")
    metrics_port: Port = Field(default=8002, description="Port of metrics")
    device: Literal["simulator", "rtl"] = Field(default="simulator", description="What executes streams")
    config: str = Field(default="u200", description="Hardware configuration")
    policy: str = Field(default="private-even", description="How private leases share the cores")
    state_dir: Path = Field(default=Path("corepool-state"), description="Folder of the durable state")
    database_url: SecretStr | None = Field(
        default=None, description="postgresql://... instead of SQLite in the state folder"
    )
    model_repository: Path | None = Field(default=None, description="Folder of models that all tenants may load")
    limits: Limits = Limits()
    compilation: Compilation = Compilation()
    rates: Rates = Rates()
    log: Log = Log()
    metrics: Metrics = Metrics()


class Key(typing.NamedTuple):
    """One setting: its names, and what it is."""

    path: tuple[str, ...]
    description: str
    default: Any
    is_flag: bool

    @property
    def flag(self) -> str:
        return "--" + "-".join(self.path).replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + "__".join(self.path).upper()


def keys(model: type[BaseModel] = Settings, path: tuple[str, ...] = ()) -> Iterator[Key]:
    """All settings in order."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Table):
            yield from keys(kind, (*path, name))
        else:
            yield Key((*path, name), field.description or "", field.default, kind is bool)


def load_settings(file: Path | None = None, flags: Mapping[tuple[str, ...], Any] | None = None) -> Settings:
    """Settings from a TOML file, the environment and flags (by path). Raises ConfigError, which names each wrong key,
    and OSError if the file cannot be read."""
    given: dict[str, Any] = {} if file is None else _read(file)
    for path, value in (_environment() | dict(flags or {})).items():
        place = given
        for part in path[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{file}: {part} must be a table")
        place[path[-1]] = value
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        where = f"{file}, {PREFIX}... or a flag" if file else f"{PREFIX}... or a flag"
        found = "; ".join(f"{'.'.join(map(str, each['loc']))}: {_words(each)}" for each in error.errors())
        raise ConfigError(f"settings ({where}): {found}") from None


def _environment() -> dict[tuple[str, ...], str]:
    """What the environment sets, by path. Raises ConfigError for COREPOOL_... that means nothing."""
    known = {key.variable: key.path for key in keys()}
    allowed = {PREFIX + name for name in OTHERS}
    unknown = [name for name in os.environ if name.startswith(PREFIX) and name not in known and name not in allowed]
    if unknown:
        raise ConfigError(f"the environment sets {', '.join(sorted(unknown))}, and there is no such setting")
    return {path: os.environ[name] for name, path in known.items() if name in os.environ}


def _words(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such setting"
    return f"{error['msg']}, not {str(error['input'])[:60]!r}"


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not a TOML file: {error}") from None


def as_toml(settings: Settings) -> str:
    """The settings as a file; secrets are hidden, what is not set is a comment."""
    lines: list[str] = []
    table: tuple[str, ...] = ()
    for key in keys():
        if key.path[:-1] != table:
            table = key.path[:-1]
            lines += ["", f"[{'.'.join(table)}]"]
        value: Any = settings
        for part in key.path:
            value = getattr(value, part)
        name = key.path[-1]
        lines.append(f"{'# ' * (value is None)}{name} = {_toml(value)}  # {key.description}")
    return "\n".join(lines).lstrip() + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    text = HIDDEN if isinstance(value, SecretStr) else "" if value is None else str(value)
    escaped = "".join(f"\\u{ord(each):04x}" if each in '"\\' or ord(each) < 32 else each for each in text)
    return f'"{escaped}"'
