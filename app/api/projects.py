"""Projects: who owns everything else."""

from __future__ import annotations

from datetime import datetime
from typing import Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app import accounts, tables
from app.api import pages
from app.api.deps import Admin, Db, Me
from app.api.pages import Cursor, Limit

router = APIRouter(tags=["projects"])


class NewProject(BaseModel):
    """A project to make."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100, description="Its name; no two are the same.")


class ProjectBody(BaseModel):
    """Owner of models, datasets, jobs and keys. Nothing of one project is visible to another."""

    id: str = Field(description="Id of the project.")
    name: str = Field(description="Its name.")
    created_at: datetime = Field(description="When it was made.")

    @classmethod
    def of(cls, project: tables.Project) -> Self:
        """The answer for a row."""
        return cls.model_validate(project, from_attributes=True)


class ProjectPage(BaseModel):
    """Some of the projects, the newest first."""

    items: list[ProjectBody] = Field(description="The projects.")
    next_cursor: str | None = pages.NEXT


@router.get("/project")
def read_project(session: Db, me: Me) -> ProjectBody:
    """Describes the project of the key."""
    return ProjectBody.of(accounts.get_project(session, me.project_id))


@router.post("/projects", status_code=201)
def create_project(body: NewProject, session: Db, _: Admin) -> ProjectBody:
    """Makes a project; needs an administrator's key."""
    return ProjectBody.of(accounts.create_project(session, body.name))


@router.get("/projects")
def list_projects(session: Db, _: Admin, cursor: Cursor = "", limit: Limit = 50) -> ProjectPage:
    """Lists all projects; needs an administrator's key."""
    rows = accounts.projects(session, cursor=cursor, limit=limit + 1)
    shown, next_cursor = pages.split(rows, limit)
    return ProjectPage(items=[ProjectBody.of(row) for row in shown], next_cursor=next_cursor)
