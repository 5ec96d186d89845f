"""The API process: `uvicorn app.main:app`, or `python -m app.main` with the address the settings name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool

import modelpress
from app import logs, settings
from app.api import (
    artifacts,
    datasets,
    deps,
    events,
    health,
    jobs,
    keys,
    models,
    openapi,
    problems,
    projects,
    requests,
    sensitivities,
    steps,
    uploads,
)
from app.sweeper import Sweeper

RESOURCES = (
    uploads,
    models,
    datasets,
    jobs,
    events,
    artifacts,
    sensitivities,
    projects,
    keys,
    steps,
)


def create_app() -> FastAPI:
    """The whole interface; every route below /v1 needs a key."""
    values = settings.get()
    logs.configure(json=values.log_json)
    app = FastAPI(
        title="ModelPress",
        version=modelpress.__version__,
        description=openapi.DESCRIPTION,
        lifespan=_swept,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=openapi.operation_id,
    )
    problems.register(app)
    app.include_router(health.router)
    for resource in RESOURCES:
        app.include_router(
            resource.router,
            prefix="/v1",
            dependencies=[Depends(deps.principal)],
            responses=openapi.ERRORS,
        )
    app.add_middleware(requests.Limited, limit_bytes=values.max_body_bytes)
    app.add_middleware(requests.Traced)
    openapi.describe(app)
    return app


@asynccontextmanager
async def _swept(_app: FastAPI) -> AsyncIterator[None]:
    """Looks after stale jobs and uploads while the API runs."""
    if not settings.get().sweep_in_api:
        yield
        return
    sweeper = Sweeper()
    sweeper.start()
    yield
    await run_in_threadpool(sweeper.stop)


app = create_app()


def main() -> None:
    """Serves until it is told to stop."""
    values = settings.get()
    uvicorn.run(
        app,
        host=values.host,
        port=values.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
