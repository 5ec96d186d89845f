"""The service from Python: one method for each thing it can do.

Everything raised is a `ModelPressError`; `modelpress.errors` draws the tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from modelpress import _calls, _files
from modelpress.resources import Key, Project, StepInfo, Version
from modelpress.spec.recipe import Recipe


class Client(_files.Files):
    """A connection to a ModelPress server; close it, or use it in a `with` block.

    Without `url` and `api_key` it takes MODELPRESS_URL and MODELPRESS_API_KEY, then the server that
    `modelpress serve` runs on this machine. One thread at a time.
    """

    def steps(self) -> tuple[StepInfo, ...]:
        """Every kind of step the server knows, each with its JSON Schema."""
        return tuple(self._list("/v1/steps", StepInfo, {}))

    def step(self, kind: str) -> StepInfo:
        """One kind of step."""
        return self._get(f"/v1/steps/{kind}", StepInfo)

    def recipes(self) -> dict[str, Recipe]:
        """The recipes that have a name."""
        return {recipe.name: recipe for recipe in self._list("/v1/recipes", Recipe, {})}

    def keys(self) -> Iterator[Key]:
        """The API keys of the project, without their secrets."""
        return self._list("/v1/api-keys", Key, {})

    def create_key(
        self, name: str, *, admin: bool = False, expires_at: datetime | None = None
    ) -> Key:
        """Makes an API key; this answer is the only one that holds its secret."""
        body = {"name": name, "admin": admin, "expires_at": expires_at and expires_at.isoformat()}
        return self._post("/v1/api-keys", Key, {k: v for k, v in body.items() if v is not None})

    def revoke_key(self, key: str | Key) -> None:
        """Makes a key useless, at once and for good."""
        self._http.request("DELETE", f"/v1/api-keys/{_calls.id_of(key)}")

    def project(self) -> Project:
        """The project of this key."""
        return self._get("/v1/project", Project)

    def projects(self) -> Iterator[Project]:
        """All projects; only for admin keys."""
        return self._list("/v1/projects", Project, {})

    def create_project(self, name: str) -> Project:
        """Makes a project; only for admin keys."""
        return self._post("/v1/projects", Project, {"name": name})

    def version(self) -> Version:
        """What the server runs; needs no key."""
        return self._get("/version", Version)
