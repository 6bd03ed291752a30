"""What the outside may send: few paths, bodies of bounded size and time, and well-formed inference requests.

It stands in front of the model server, whose own parsing answers some malformed requests with a 5xx, and whose
repository endpoints would let anyone unload the model.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Final

import numpy as np
import orjson
from starlette.datastructures import MutableHeaders

from conversion_retrieval.serving.protocol import INPUT, MAX_BATCH, shown

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES: Final = 4 * 2**20
MAX_BODY_SECONDS: Final = 10.0
MAX_NESTING: Final = 32
NESTING_STEPS: Final = np.array([(byte in b"[{") - (byte in b"]}") for byte in range(256)], np.int8)
READABLE: Final = re.compile(r"/|/metrics|/v2|/v2/health/(live|ready)|/v2/models|/v2/models/[\w.-]{1,128}(/ready)?")
INFERENCE: Final = re.compile(r"/v2/models/[\w.-]{1,128}/infer")


class Refused(Exception):  # noqa: N818 - an answer, not a failure
    """A request that gets this status and sentence; ``allow`` are the methods of its path, where that is the fault."""

    def __init__(self, status: HTTPStatus, reason: str, *, allow: str = "") -> None:
        super().__init__(reason)
        self.status, self.reason, self.allow = status, reason, allow


class RequestGuard:
    """ASGI middleware; whatever passes is a request that the model server can parse."""

    def __init__(self, app: App, *, on_refusal: Callable[[int], None]) -> None:
        self._app, self._on_refusal = app, on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass, or answer with a 4xx."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await _checked_body(scope, receive)
        except Refused as refused:
            self._on_refusal(refused.status)
            await _answer(send, refused)
            return
        if body is None:
            # The model server has no HEAD: it answers as to GET, and the HTTP side leaves the body out.
            await self._app({**scope, "method": "GET"}, receive, send)
        else:
            await self._app(_as_json(scope), _replay(body, receive), _with_length(send))


async def _checked_body(scope: Scope, receive: Receive) -> bytes | None:
    path, method = scope["path"], scope["method"]
    if READABLE.fullmatch(path):
        if method not in ("GET", "HEAD"):
            raise _wrong_method("GET", path, method, allow="GET, HEAD")
        return None
    if not INFERENCE.fullmatch(path):
        raise Refused(HTTPStatus.NOT_FOUND, "expected a path of the Open Inference Protocol, such as /v2/health/ready")
    if method != "POST":
        raise _wrong_method("POST", path, method, allow="POST")
    headers = {name.lower(): value for name, value in scope["headers"]}
    _check_headers(headers)
    try:
        async with asyncio.timeout(MAX_BODY_SECONDS):
            body = await _read(receive)
    except TimeoutError:
        reason = f"expected the body within {MAX_BODY_SECONDS:.0f} s"
        raise Refused(HTTPStatus.REQUEST_TIMEOUT, reason) from None
    check_inference(body)
    return body


def _wrong_method(expected: str, path: str, found: str, *, allow: str) -> Refused:
    return Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"expected {expected} {path}, found {found}"[:200], allow=allow)


def _check_headers(headers: dict[bytes, bytes]) -> None:
    if b"inference-header-content-length" in headers:
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected JSON tensors, found the binary tensor extension")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected an uncompressed body")
    if any(name.startswith(b"ce-") for name in headers):
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected an inference request, found a cloud event")
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 12 or int(length) > MAX_BODY_BYTES:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {MAX_BODY_BYTES} bytes")


async def _read(receive: Receive) -> bytes:
    """The whole body; a chunked one must not exceed the limit either."""
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(HTTPStatus.BAD_REQUEST, "expected a whole body, found the connection closed")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > MAX_BODY_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {MAX_BODY_BYTES} bytes")
        if not message.get("more_body", False):
            return b"".join(chunks)


def check_inference(body: bytes) -> None:
    """Refuse a body that is not an inference request with one BYTES tensor ``requests`` [B] of texts."""
    _check_nesting(body)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _bad("a JSON body", str(error)) from None
    if not isinstance(document, dict) or not set(document) <= {"id", "parameters", "inputs", "outputs"}:
        raise _bad("an object with inputs", shown([*document] if isinstance(document, dict) else document))
    if not isinstance(document.get("id", ""), str) or len(document.get("id", "")) > 256:
        raise _bad("an id of at most 256 characters", shown(document["id"]))
    for name, empty in (("parameters", {}), ("outputs", [])):
        if document.get(name, empty) != empty:
            raise _bad(f"no {name}: every output is answered", shown(document[name]))
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _bad("inputs with one tensor", shown(inputs))
    _check_tensor(inputs[0])


def _check_tensor(tensor: dict[str, Any]) -> None:
    if set(tensor) != {"name", "datatype", "shape", "data"}:
        raise _bad("name, datatype, shape and data in the input", shown([*tensor]))
    if tensor["name"] != INPUT or tensor["datatype"] != "BYTES":
        raise _bad(f"a BYTES tensor called {INPUT}", shown({name: tensor[name] for name in ("name", "datatype")}))
    data = tensor["data"]
    if not isinstance(data, list) or not 1 <= len(data) <= MAX_BATCH:
        raise _bad(f"1 to {MAX_BATCH} texts in data", f"{len(data)}" if isinstance(data, list) else shown(data))
    if (other := next((text for text in data if not isinstance(text, str)), "")) != "":
        raise _bad("texts in data, each a JSON object", shown(other))
    if tensor["shape"] != [len(data)] or any(isinstance(size, bool) for size in tensor["shape"]):
        raise _bad(f"shape [{len(data)}]", shown(tensor["shape"]))
    for text in data:
        try:
            encoded = text.encode()
        except UnicodeEncodeError:
            raise _bad("UTF-8 texts in data", "a lone surrogate") from None
        _check_nesting(encoded)


def _check_nesting(body: bytes) -> None:
    """Deeply nested JSON costs a parser its stack; brackets inside strings count too, which errs on the safe side.

    All at once: while the brackets of a large body are counted one by one, nobody else is answered.
    """
    depths = NESTING_STEPS[np.frombuffer(body, np.uint8)].cumsum(dtype=np.int32)
    if depths.max(initial=0) > MAX_NESTING:
        raise _bad(f"at most {MAX_NESTING} levels of nesting", "more")


def _bad(expected: str, found: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, f"expected {expected}, found {found}")


def _as_json(scope: Scope) -> Scope:
    """The body was checked to be JSON, whatever its sender calls it; the model server goes by the header."""
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}


def _replay(body: bytes, receive: Receive) -> Receive:
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _with_length(send: Send) -> Send:
    """Encoded answers come from the model server without type and length: HTTP would have to send them in chunks."""
    held: list[Message] = []

    async def complete(message: Message) -> None:
        if message["type"] == "http.response.start":
            held.append(message)
            return
        if held:
            start = held.pop()
            headers = MutableHeaders(raw=[*start["headers"]])
            headers.setdefault("content-type", "application/json")
            if not message.get("more_body", False):
                headers.setdefault("content-length", str(len(message.get("body", b""))))
            await send({**start, "headers": headers.raw})
        await send(message)

    return complete


async def _answer(send: Send, refused: Refused) -> None:
    content = orjson.dumps({"error": refused.reason})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if refused.allow:
        headers.append((b"allow", refused.allow.encode()))
    if refused.status != HTTPStatus.BAD_REQUEST:
        # A body may be left unread: the connection cannot be used again.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": int(refused.status), "headers": headers})
    await send({"type": "http.response.body", "body": content})
