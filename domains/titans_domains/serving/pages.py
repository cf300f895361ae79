"""What the service says of itself: /openapi.json, and /docs, a page that fetches nothing from elsewhere."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse

from titans_domains.serving.bodies import UNSUPPORTED, WORDS
from titans_domains.serving.errors import STATUSES
from titans_domains.serving.settings import ServeConfig

LIMITS = {
    "max_body": "bytes of a body",
    "max_prompt": "tokens of a prompt",
    "max_tokens": "tokens made by a request",
    "concurrency": "requests worked on at once",
    "queue": "requests that wait",
    "body_seconds": "seconds for a client to send its body",
    "grace": "seconds that running requests have when the service stops",
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "One sentence."},
                "type": {"enum": ["invalid_request_error", "rate_limit_error", "server_error"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 0.5em 0 1.5em }
td, th { border: 1px solid #bbb; padding: 0.2em 0.6em; text-align: left; vertical-align: top }
code { font: 0.9em ui-monospace, monospace }
"""


def add_pages(app: FastAPI, config: ServeConfig) -> None:
    """Called when all other routes are there."""
    schema = schema_of(app, locked=bool(config.keys))
    page = page_of(schema, config)
    app.openapi = lambda: schema  # type: ignore[method-assign]

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page)


def schema_of(app: FastAPI, *, locked: bool) -> dict[str, Any]:
    """FastAPI's, without the 422 that is never sent: errors are ours, and a key is a bearer's."""
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    parts = schema.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = ERROR
    refused = {
        "description": "Refused, in one sentence: " + "; ".join(
            f"{status} {words}" for status, words in STATUSES.items()
        ),
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }  # fmt: skip
    if locked:
        parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for path, _, operation in operations(schema):
        operation["responses"].pop("422", None)
        operation["responses"]["default"] = refused
        if locked and path != "/healthz":
            operation["security"] = [{"bearer": []}]
    return schema


def operations(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def page_of(schema: Mapping[str, Any], config: ServeConfig) -> str:
    """The routes with what may be sent, the limits, and the errors."""
    key = "Every route but /healthz needs <code>Authorization: Bearer KEY</code>."
    return "\n".join(
        [
            "<!doctype html>", '<html lang="en"><head><meta charset="utf-8"><title>titans</title>',
            f"<style>{STYLE}</style></head><body>", "<h1>titans</h1>",
            f"<p>{key if config.keys else 'No key is needed.'} The same for programs: "
            '<a href="openapi.json">openapi.json</a>.</p>',
            *(_route(schema, *one) for one in operations(schema)),
            "<h2>Limits</h2>",
            _table(("at most", ""), [(f"{getattr(config, n):,}", text) for n, text in LIMITS.items()]),
            "<h2>Errors</h2>", "<p>One sentence each: <code>{&quot;error&quot;: {&quot;message&quot;, "
            "&quot;type&quot;, &quot;param&quot;, &quot;code&quot;}}</code>.</p>",
            _table(("status", ""), [(str(status), words) for status, words in STATUSES.items()]),
            "</body></html>",
        ]
    )  # fmt: skip


def _route(schema: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> str:
    rows = [(p["name"], p["in"], _kind(p["schema"])) for p in operation.get("parameters", ())]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    rows += _fields(schema, body.get("schema", {}))
    table = _table(("field", "in", "what"), rows) if rows else ""
    words = operation.get("description", "")
    return f"<h2><code>{method} {escape(path)}</code></h2>\n<p>{escape(words)}</p>\n{table}"


def _fields(schema: Mapping[str, Any], body: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The fields of a body, of which one that may be left away is a choice between it and nothing."""
    known = schema["components"]["schemas"]
    words = {**WORDS, **dict.fromkeys(UNSUPPORTED, "not supported, but for its default")}
    for choice in (body, *body.get("anyOf", ())):
        if "$ref" in choice:
            table = known[choice["$ref"].rpartition("/")[2]]
            must = table.get("required", ())
            return [
                (name, "body", words.get(name) or _kind(one) + ", needed" * (name in must))
                for name, one in table["properties"].items()
            ]
    return []


BOUNDS = {
    "minimum": "from {:g}", "exclusiveMinimum": "above {:g}", "maximum": "to {:g}",
    "exclusiveMaximum": "below {:g}", "minItems": "at least {}", "maxItems": "at most {}",
}  # fmt: skip


def _kind(one: Mapping[str, Any]) -> str:
    """The type of a field with its bounds and its default, in a few words."""
    choices = [c for c in one.get("anyOf", [one]) if c.get("type") != "null"]
    words = []
    for choice in choices:
        kind = choice.get("type", "object" if "$ref" in choice else "any")
        bounds = [text.format(choice[name]) for name, text in BOUNDS.items() if name in choice]
        words.append(" ".join([kind, *bounds]))
    default = f", default {one['default']!r}" if one.get("default") not in (None, "") else ""
    return " or ".join(words) + default


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return "\n".join(["<table>", *lines, "</table>"])
