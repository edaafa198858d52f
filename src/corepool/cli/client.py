"""Asks a running server: where it is, with which key, and what its answers mean.

It must not know what the verbs ask for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corepool.cli.output import Progress
from corepool.cli.signals import safe_point
from corepool.errors import AuthenticationError, CorepoolError, InputError, UnavailableError

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
BLOCK = 1 << 18
ERROR_CHARACTERS = 2000
KEY_BYTES = 1000

UrlOption = Annotated[str, typer.Option("--url", envvar="COREPOOL_URL", metavar="URL", help="Where the server is.")]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", envvar="COREPOOL_KEY", metavar="KEY", help="An API key, or @FILE that holds one."),
]
TenantOption = Annotated[
    str | None,
    typer.Option(
        "--tenant", envvar="COREPOOL_TENANT", metavar="NAME", help="The tenant to act for, with an operator's key."
    ),
]


class Client:
    """One server and one key. Methods raise errors of corepool.errors, each a line that says what to do."""

    def __init__(self, url: str, key: str | None, tenant: str | None = None, timeout_s: float = 600.0) -> None:
        import httpx

        if not url.startswith(("http://", "https://")):
            raise InputError(f"--url must begin with http:// or https://, not {url!r}")
        self.url = url.rstrip("/")
        self.key = read_key(key)
        headers = {"authorization": f"Bearer {self.key}"}
        if tenant is not None:
            headers["corepool-tenant"] = tenant
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)
        except (httpx.InvalidURL, UnicodeEncodeError, ValueError) as error:
            raise InputError(f"{url}: not an address or a key that can be sent: {error}") from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, method: str, path: str, **more: Any) -> Any:
        """The JSON of the answer, None if it is empty."""
        answer = self.send(method, path, **more)
        try:
            return answer.json() if answer.content else None
        except ValueError:
            raise UnavailableError(f"{self.url} answers, but not as a corepool server does") from None

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """The whole answer."""
        import httpx

        safe_point()
        try:
            answer = self._http.request(method, path, **more)
        except httpx.InvalidURL as error:
            raise InputError(f"{self.url}: {error}") from None
        except ValueError:  # of the JSON that is to be sent
            raise InputError("a number that is infinite, or none, cannot be sent") from None
        except httpx.TimeoutException:
            raise UnavailableError(f"{self.url} did not answer in time") from None
        except (httpx.ConnectError, httpx.UnsupportedProtocol) as error:
            raise UnavailableError(f"no server answers at {self.url} ({error}): start `corepool serve`") from None
        except httpx.HTTPError as error:
            raise UnavailableError(f"the connection to {self.url} broke: {error or type(error).__name__}") from None
        finally:
            safe_point()
        if answer.status_code >= 400:
            raise failure(answer.status_code, _text_of(answer))
        return answer

    def upload(self, path: str, file: Path, progress: Progress, what: str, **more: Any) -> Any:
        """PUT a file's content, telling how far it is."""
        if file.is_dir():
            raise InputError(f"{file} is a folder, not a file")
        with file.open("rb") as stream:
            size = file.stat().st_size

            def blocks() -> Iterator[bytes]:
                sent = 0
                while block := stream.read(BLOCK):
                    yield block
                    sent += len(block)
                    progress(what, sent / max(size, 1))

            return self.ask("PUT", path, content=blocks(), headers={"content-length": str(size)}, **more)


def read_key(key: str | None) -> str:
    """The key itself: given, or in a file. Raises InputError."""
    if key is None or not key.strip():
        raise InputError("a key is needed: --key KEY, --key @FILE or COREPOOL_KEY (operators' is in <state>/admin.key)")
    if key.startswith("@"):
        path = Path(key[1:])
        with path.open("rb") as stream:
            key = stream.read(KEY_BYTES).decode("utf-8", "replace")
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError("the key has characters that no key has")
    return key


def failure(status: int, text: str) -> CorepoolError:
    """What the server refused, as an error."""
    if status == 401:
        return AuthenticationError(f"the server refused the key: {text}")
    if status in (429, 503):
        return UnavailableError(text)
    return CorepoolError(text)


def quoted(name: str) -> str:
    """A name as a part of a path."""
    from urllib.parse import quote

    return quote(name, safe="")


def _text_of(answer: httpx.Response) -> str:
    with contextlib.suppress(ValueError, AttributeError):
        text = answer.json().get("error")
        if isinstance(text, str):
            return text[:ERROR_CHARACTERS]
    return f"the server answered {answer.status_code} {answer.reason_phrase}"
