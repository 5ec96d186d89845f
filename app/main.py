"""The API process: `uvicorn app.main:app`, or `python -m app.main` with the address the settings name."""

from __future__ import annotations

import uvicorn
from fastapi import APIRouter, Depends, FastAPI

import modelpress
from app import logs, settings
from app.api import deps, health, openapi, problems, requests, uploads

ROUTERS: tuple[APIRouter, ...] = (uploads.router,)


def create_app() -> FastAPI:
    """The whole interface; every route below /v1 needs a key."""
    values = settings.get()
    logs.configure(json=values.log_json)
    app = FastAPI(
        title="ModelPress",
        version=modelpress.__version__,
        description=openapi.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=openapi.operation_id,
    )
    problems.register(app)
    app.include_router(health.router)
    for router in ROUTERS:
        app.include_router(
            router,
            prefix="/v1",
            dependencies=[Depends(deps.principal)],
            responses=openapi.ERRORS,
        )
    app.add_middleware(requests.Limited, limit_bytes=values.max_body_bytes)
    app.add_middleware(requests.Traced)
    openapi.describe(app)
    return app


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
