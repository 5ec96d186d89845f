"""A crew of workers for the tests of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from app.accounts import Principal
from tests import making
from tests.e2e.crew import SHORT, Crew


@pytest.fixture(scope="module")
def standing_crew(
    shared_postgres_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Crew]:
    values = {"database_url": shared_postgres_url, "broker_url": redis_url, **SHORT}
    with ExitStack() as stack:
        yield Crew(tmp_path_factory.mktemp("crew"), values, stack)


@pytest.fixture
def crew(standing_crew: Crew, configure: Callable[..., None]) -> Crew:
    configure(home=standing_crew.home, **standing_crew.values)
    return standing_crew.complete()


@pytest.fixture
def me(crew: Crew, request: pytest.FixtureRequest) -> Principal:
    someone = making.principal(request.node.name)
    making.store(someone, crew.home / "scratch")
    return someone
