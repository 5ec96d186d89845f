"""Which server to speak to, and with which key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from modelpress.errors import Unreachable

URL_VARIABLE = "MODELPRESS_URL"
KEY_VARIABLE = "MODELPRESS_API_KEY"
HOME_VARIABLE = "MODELPRESS_HOME"


class Server(NamedTuple):
    """A server and the key to use with it; the key is empty where none is known."""

    url: str
    api_key: str


class KeyFile(BaseModel):
    """What the embedded server leaves for the tools on the same machine, in a file of mode 0600."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    url: str
    key: str


def home() -> Path:
    """Where the embedded server keeps everything."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".modelpress").absolute()


def key_path() -> Path:
    """The key file of the embedded server, which may not exist."""
    return home() / "key.json"


def find(url: str | None = None, api_key: str | None = None) -> Server:
    """Takes what is given, then the environment, then the key file of the embedded server.

    A key from the file is only ever sent to the server the file names.

    Raises:
        Unreachable: no server is given anywhere, or the key file can't be read.
    """
    url = url or os.environ.get(URL_VARIABLE)
    api_key = api_key or os.environ.get(KEY_VARIABLE)
    embedded = None if url and api_key else _key_file()
    if not url:
        if embedded is None:
            raise Unreachable(
                f"no server is known: start one with `modelpress serve`, or set {URL_VARIABLE} and "
                f"{KEY_VARIABLE} (there is no key file {key_path()})"
            )
        url = embedded.url
    url = url.rstrip("/")
    if not api_key and embedded is not None and embedded.url.rstrip("/") == url:
        api_key = embedded.key
    return Server(url, api_key or "")


def _key_file() -> KeyFile | None:
    try:
        return KeyFile.model_validate_json(key_path().read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as e:
        raise Unreachable(
            f"the key file {key_path()} can't be read ({type(e).__name__}); "
            "`modelpress serve` writes it anew"
        ) from e
