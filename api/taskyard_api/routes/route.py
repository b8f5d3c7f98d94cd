"""What all routes have in common."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any, get_origin
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from taskyard_api.parameters import refuse_repeated


class Route(APIRoute):
    """A call that refuses a query parameter that is there twice and takes one value. FastAPI takes the last one."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The call itself, behind the check."""
        handle = super().get_route_handler()
        single = set(self.single_parameters())
        if not single:
            return handle

        async def checked(request: Request) -> Response:
            if query := request.scope["query_string"]:
                refuse_repeated((name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)), single)
            return await handle(request)

        return checked

    def single_parameters(self) -> Iterator[str]:
        """Names of the query parameters that take one value."""
        for parameter in self.dependant.query_params:
            kind: Any = parameter.field_info.annotation
            fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {parameter.alias: parameter.field_info}
            yield from (name for name, field in fields.items() if get_origin(field.annotation) is not list)
