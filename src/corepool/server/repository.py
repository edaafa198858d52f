"""Folders of models: which models and versions there are, and what their configurations say.

It must not know engines, compilers or transports. A model is a folder with a folder for each version, a whole number
from 1, which holds model.onnx or model.cpk; its config.yaml may be absent.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corepool.errors import RequestError
from corepool.server.tensors import shown

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
SOURCES = ("model.onnx", "model.cpk")
CALIBRATION = "calibration.npz"
CONFIG_FILES = ("config.yaml", "config.yml", "config")
CONFIG_BYTES = 1 << 16
KEYS = ("name", "versions", "calibration")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a configuration says. ``versions`` to load: a tuple, or how many of the highest (None: all);
    ``calibration`` is a path within the model's folder, of a .npz file or a folder of samples."""

    versions: tuple[str, ...] | int | None = 1
    calibration: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One version of a model as a file; ``calibration`` is a path or None. Both exist, or did when this was made."""

    name: str
    version: str
    path: Path
    calibration: Path | None


def check_name(name: str) -> str:
    """A name that a model may be given. Raises RequestError."""
    if not NAME.fullmatch(name):
        raise RequestError(
            f"{shown(name)} cannot be a model's name: 1 to 128 letters, digits, '.', '_', '-', the first a letter or"
            " digit"
        )
    return name


def check_version(version: str) -> str:
    """A version that a model may be given. Raises RequestError."""
    if not VERSION.fullmatch(version):
        raise RequestError(f"{shown(version)} cannot be a version: it must be a whole number from 1")
    return version


def read_config(values: Any, where: str) -> ModelConfig:
    """A configuration from what its file or a client says. Raises RequestError that names the wrong key."""
    if values is None:
        return ModelConfig()
    if not isinstance(values, Mapping):
        raise RequestError(f"{where}: a configuration must be a table of {', '.join(KEYS)}")
    unknown = [str(key) for key in values if key not in KEYS]
    if unknown:
        raise RequestError(f"{where}: there is no {shown(unknown[0])} in configurations, only {', '.join(KEYS)}")
    calibration = values.get("calibration")
    if calibration is not None:
        parts = Path(calibration).parts if isinstance(calibration, str) else ()
        if not parts or calibration.startswith("/") or ".." in parts or "\0" in calibration:
            raise RequestError(f"{where}: calibration must be a path within the model's folder")
    return ModelConfig(_versions(values.get("versions", "latest"), where), calibration)


def _versions(value: Any, where: str) -> tuple[str, ...] | int | None:
    if value == "latest":
        return 1
    if value == "all":
        return None
    if isinstance(value, list) and value and all(VERSION.fullmatch(str(each)) for each in value):
        return tuple(str(each) for each in value)
    raise RequestError(f"{where}: versions must be latest, all, or a list of whole numbers from 1")


class ModelFolder:
    """A folder of models. What is no model is passed over; nothing outside the folder is followed to."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """All models that have a version."""
        return [name for name in self._children(self.root, NAME) if self.sources(name)]

    def sources(self, name: str) -> dict[str, Source]:
        """A model's versions, lowest first; none for a model that is not there."""
        if not NAME.fullmatch(name):
            return {}
        found: dict[str, Source] = {}
        for version in sorted(self._children(self.root / name, VERSION), key=int):
            source = self._source(name, version)
            if source is not None:
                found[version] = source
        return found

    def chosen(self, name: str, config: ModelConfig | None = None) -> list[Source]:
        """The versions that the configuration wants loaded. Raises RequestError if one of them is not there."""
        sources = self.sources(name)
        wanted = (self.config(name) if config is None else config).versions
        if wanted is None:
            return list(sources.values())
        if isinstance(wanted, int):
            return list(sources.values())[-wanted:]
        missing = [version for version in wanted if version not in sources]
        if missing:
            raise RequestError(f"model {shown(name)} has no version {missing[0]}, which its configuration wants")
        return [sources[version] for version in wanted]

    def config(self, name: str) -> ModelConfig:
        """A model's configuration, the usual one if there is none. Raises RequestError."""
        for file in (self.root / name / each for each in CONFIG_FILES):
            if _is_file(file):
                return read_config(_load_yaml(file), f"{name}/{file.name}")
        return ModelConfig()

    def _source(self, name: str, version: str) -> Source | None:
        folder = self.root / name / version
        path = next((folder / each for each in SOURCES if _is_file(folder / each)), None)
        if path is None:
            return None
        try:
            wish = self.config(name).calibration
        except RequestError:
            wish = None  # told when the model is loaded
        candidates = [folder / CALIBRATION, self.root / name / CALIBRATION, self.root / name / "calibration"]
        if wish is not None:
            candidates.insert(0, self.root / name / wish)
        calibration = next((each for each in candidates if each.exists() and self._inside(each)), None)
        return Source(name, version, path, calibration)

    def _inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root.resolve())

    def _children(self, folder: Path, pattern: re.Pattern[str]) -> Iterator[str]:
        try:
            names = sorted(each.name for each in folder.iterdir() if each.is_dir())
        except OSError:
            return
        yield from (name for name in names if pattern.fullmatch(name))


def _is_file(path: Path) -> bool:
    """True for a regular file that is no link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _load_yaml(file: Path) -> Any:
    import yaml  # type: ignore[import-untyped]

    where = f"{file.parent.name}/{file.name}"
    try:
        if file.stat().st_size > CONFIG_BYTES:
            raise RequestError(f"{where}: a configuration has at most {CONFIG_BYTES} bytes")
        text = file.read_text(encoding="utf-8")
        if "&" in text:  # anchors: a small file could stand for a huge one
            raise RequestError(f"{where}: anchors are not supported")
        return yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise RequestError(f"{where}: cannot be read as YAML: {' '.join(str(error).split())}") from None
