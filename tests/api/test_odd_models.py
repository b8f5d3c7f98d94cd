"""Whatever one plugin's models are, /openapi.json and /task-types are there for all others, and the document is valid."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import importlib_metadata
import pytest
from openapi_spec_validator import validate
from pydantic import BaseModel, ConfigDict

from taskyard import handler, hookimpl
from taskyard.plugins import GROUP, Registry, load_plugins
from taskyard.settings import Settings
from taskyard_api.app import create_app
from tests.api.conftest import client_of
from tests.core.test_schemas import UNUSABLE, USABLE

pytestmark = pytest.mark.anyio


BUILT: list[str] = []


def _only_once(schema: dict[str, Any]) -> None:
    BUILT.append("built")
    if len(BUILT) > 2:
        raise LookupError("no more translations")


class Moody(BaseModel):
    """Its schema is built when the plugin is loaded, for payload and result, and never again."""

    model_config = ConfigDict(json_schema_extra=_only_once)


class Work(BaseModel):
    """There is one of this name in each plugin."""

    word: str = "hello"


def _plugin(name: str, kind: Any, monkeypatch: pytest.MonkeyPatch) -> importlib_metadata.EntryPoint:
    def work(payload: Any) -> None:
        """Do nothing."""

    work.__annotations__ = {"payload": kind, "return": kind}
    declared = handler(f"{name}.work")(work)
    module: Any = ModuleType(f"odd_models_{name}")
    module.taskyard_handlers = hookimpl(lambda: [declared])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return importlib_metadata.EntryPoint(name, module.__name__, GROUP)


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Each odd model in a plugin of its own, and two plugins whose models have one name."""
    twins = [type("Work", (BaseModel,), {"__annotations__": {field: int}, "__module__": module}) for field, module in (("a", "first"), ("b", "second"))]
    kinds = {f"bad{number}": kind for number, (kind, *_) in enumerate(UNUSABLE)} | {
        f"good{number}": kind for number, kind in enumerate([*USABLE, Work, *twins])
    }
    return load_plugins(entry_points=[_plugin(name, kind, monkeypatch) for name, kind in kinds.items()])


async def test_only_the_plugin_whose_model_it_is_has_failed_and_its_type_and_field_are_named(odd: Registry) -> None:
    for number, (_, field, problem) in enumerate(UNUSABLE):
        plugin = next(plugin for plugin in odd.plugins if plugin.name == f"bad{number}")
        assert plugin.state == "failed"
        assert f"handler 'bad{number}.work': payload" in str(plugin.reason)
        assert field in str(plugin.reason)
        assert problem in str(plugin.reason)
        assert "test_odd_models.py:" in str(plugin.where)
    assert {plugin.name for plugin in odd.plugins if plugin.state != "failed"} == {f"good{number}" for number in range(len(USABLE) + 3)}


async def test_the_document_is_whole_and_valid_and_every_type_is_listed(odd: Registry, api_settings: Settings) -> None:
    app = create_app(api_settings.model_copy(update={"routes": ()}), odd)
    async with app.router.lifespan_context(app), client_of(app) as client:
        document = await client.get("http://test.localhost/openapi.json")
        types = await client.get("/task-types")
    assert (document.status_code, types.status_code) == (200, 200)
    validate(document.json())
    assert {item["type"] for item in types.json()["items"]} == {f"good{number}.work" for number in range(len(USABLE) + 3)}


async def test_a_model_that_changes_its_mind_spoils_the_description_of_its_own_plugin_alone(monkeypatch: pytest.MonkeyPatch, api_settings: Settings) -> None:
    BUILT.clear()
    registry = load_plugins(entry_points=[_plugin("moody", Moody, monkeypatch), _plugin("steady", Work, monkeypatch)])
    assert [plugin.state for plugin in registry.plugins] == ["enabled", "enabled"]
    app = create_app(api_settings.model_copy(update={"routes": ()}), registry)
    async with app.router.lifespan_context(app), client_of(app) as client:
        document = (await client.get("http://test.localhost/openapi.json")).json()
        types = (await client.get("/task-types")).json()["items"]
    validate(document)
    assert "Work" in str(document["components"]["schemas"])
    assert [item["payload_schema"]["title"] for item in types] == ["Moody", "Work"]
