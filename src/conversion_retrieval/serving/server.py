"""``conversion-retrieval serve``: the champion behind KServe's model server (Open Inference Protocol v2).

The next champion is loaded beside the served one and answers a query before it takes over; the switch is one
assignment, and requests that began with the old one finish with it.
"""

import asyncio
import gc
import logging
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import faiss
import orjson
import torch
import uvloop

from conversion_retrieval.errors import UserError
from conversion_retrieval.progress import say
from conversion_retrieval.registry.registry import Registry
from conversion_retrieval.serving import monitoring
from conversion_retrieval.serving.batching import Batcher, Overloaded
from conversion_retrieval.serving.calls import Answered, Answerer
from conversion_retrieval.serving.champion import ChampionLoader
from conversion_retrieval.serving.commands import read_user_events
from conversion_retrieval.serving.guard import RequestGuard
from conversion_retrieval.serving.protocol import INPUT, output_tensors
from conversion_retrieval.serving.requests import UserEvents
from conversion_retrieval.serving.retriever import Retriever
from conversion_retrieval.tables import Tables, read_tables

# The model server reads the process's arguments when imported, and these are ours.
_arguments, sys.argv = sys.argv, sys.argv[:1]
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer  # noqa: E402
from kserve.errors import InvalidInput, ModelNotFound, ServerNotReady  # noqa: E402
from kserve.model_server import app  # noqa: E402

sys.argv = _arguments

MODEL_NAME: Final = "conversion-retrieval"
MAX_CALLS: Final = 32  # in a batch
BACKLOG: Final = 2048  # connections that wait to be accepted
INPUT_TYPES: Final = [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}]
OUTPUT_TYPES: Final = [
    {"name": "item_ids", "datatype": "BYTES", "shape": [-1, -1]},
    {"name": "scores", "datatype": "FP32", "shape": [-1, -1]},
    {"name": "advertiser_ids", "datatype": "BYTES", "shape": [-1, -1]},
    {"name": "reasons", "datatype": "BYTES", "shape": [-1, -1]},
    {"name": "num_candidates", "datatype": "INT64", "shape": [-1]},
]


class JsonResponse(InferResponse):  # type: ignore[misc] # kserve ships no types
    """An answer that is encoded once: kserve's own way to JSON goes through NumPy arrays, pydantic and plain Python."""

    def __init__(self, request_id: str | None, answered: Answered) -> None:
        outputs = [
            InferOutput(name, shape, kind, data) for name, kind, shape, data in output_tensors(answered.candidates)
        ]
        super().__init__(request_id, MODEL_NAME, outputs, parameters={"version": answered.version})

    def to_rest(self) -> tuple[bytes, None]:
        """The JSON of the Open Inference Protocol."""
        outputs = [
            {"name": output.name, "shape": output.shape, "datatype": output.datatype, "data": output.data}
            for output in self.outputs
        ]
        document = {"model_name": self.model_name, "outputs": outputs, "parameters": self.parameters}
        return orjson.dumps(document | ({"id": self.id} if self.id else {})), None


class ChampionModel(Model):  # type: ignore[misc] # kserve ships no types
    """Answers with whatever champion is loaded; ``switch`` replaces it between two requests."""

    def __init__(self, retriever: Retriever, known: UserEvents | None = None) -> None:
        super().__init__(MODEL_NAME)
        self._known = known
        self._batcher: Batcher[list[str], Answered] = Batcher(
            self._answer, max_calls=MAX_CALLS, initializer=use_one_core
        )
        self.switch(retriever)
        self.ready = True  # a retriever has answered a query before it gets here

    @property
    def version(self) -> str:
        """The served version."""
        return self._answerer.retriever.version

    def switch(self, retriever: Retriever) -> None:
        """Serve another bundle from the next batch on."""
        coverage = retriever.coverage()
        self._answerer = Answerer(retriever=retriever, known=self._known, observe=coverage.observe)
        monitoring.serving(retriever.version, coverage)

    async def predict(
        self,
        payload: InferRequest,
        headers: dict[str, str] | None = None,  # noqa: ARG002 - kserve passes them
    ) -> InferResponse:
        """Answer one inference request; ``InvalidInput`` (400) says what is wrong, ``ServerNotReady`` (503) that
        too many wait.
        """
        with monitoring.measured():
            try:
                answered = await self._batcher(payload.inputs[0].data)
            except UserError as error:
                raise InvalidInput(str(error)) from None
            except Overloaded as error:
                raise ServerNotReady(str(error)) from None
        return JsonResponse(payload.id, answered)

    def get_input_types(self) -> list[dict[str, Any]]:
        """Metadata of the input tensor."""
        return INPUT_TYPES

    def get_output_types(self) -> list[dict[str, Any]]:
        """Metadata of the output tensors."""
        return OUTPUT_TYPES

    def _answer(self, calls: Sequence[list[str]]) -> list[Answered | Exception]:
        return self._answerer(calls)  # one champion for the whole batch


class ChampionServer(ModelServer):  # type: ignore[misc] # kserve ships no types
    """KServe's model server on the given sockets, looking for a new champion every ``poll_seconds``."""

    def __init__(
        self, model: ChampionModel, loader: ChampionLoader, *, sockets: Sequence[socket.socket], poll_seconds: float
    ) -> None:
        super().__init__(enable_grpc=False, enable_latency_logging=False, access_log_format=None)
        self._model, self._loader, self._sockets, self._poll_seconds = model, loader, sockets, poll_seconds

    def setup_event_loop(self) -> None:
        """Run on uvloop; kserve's own setting is of a loop that it then replaces."""
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

    async def _serve(self) -> None:
        uvicorn_server = self._rest_server._server
        uvicorn_server.serve = partial(uvicorn_server.serve, sockets=list(self._sockets))
        logging.getLogger("uvicorn.access").handlers.clear()  # no line for every request
        logging.getLogger("kserve").addFilter(is_news)
        # Its one middleware writes two lines to the log for every request; what they say is in the metrics.
        self._rest_server._add_middlewares = lambda app: None  # noqa: ARG005 - kserve passes it
        polling = asyncio.create_task(self._follow())
        try:
            await super()._serve()
        finally:
            polling.cancel()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await asyncio.to_thread(follow_champion, self._model, self._loader)
            except Exception as error:  # the service outlives whatever the registry does
                monitoring.POLL_FAILURES.inc()
                say(f"serve: still serving {self._model.version}; looking for a new champion failed: {error}")


def first_model(loader: ChampionLoader, tables: Tables | None) -> ChampionModel:
    """A model that alone holds the champion it begins with: whoever else kept it would keep its memory for good."""
    retriever = loader.load()
    return ChampionModel(retriever, read_user_events(tables, config=retriever.model.config) if tables else None)


def follow_champion(model: ChampionModel, loader: ChampionLoader) -> bool:
    """Switch to the registry's champion if it changed; returns whether it did."""
    retriever = loader.load_if_changed(model.version)
    if retriever is None:
        return False
    model.switch(retriever)
    loader.discard_all_but(retriever.version)  # files that requests still have mapped live until they finish
    settle()
    monitoring.SWITCHES.inc()
    say(f"serve: now serving {retriever.version}")
    return True


def is_news(record: logging.LogRecord) -> bool:
    """Whether the log is where a record belongs: refusals are counted, and anyone could fill a disk with them."""
    return not (record.exc_info and isinstance(record.exc_info[1], InvalidInput | ServerNotReady | ModelNotFound))


def use_one_core() -> None:
    """No threads below this one in torch and FAISS, whose setting is the calling thread's: they would wait for each
    other where requests come side by side, and the other cores are for the HTTP side.
    """
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def settle() -> None:
    """Hide what is loaded from the garbage collector, which would else look through all texts of a catalogue again and
    again while requests wait.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@contextmanager
def bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Sockets at every address that ``host`` stands for, which refuse connections until they listen.

    Raises ``UserError`` for an address that is taken or not this machine's.
    """
    with ExitStack() as opened:
        with _translated(host, port):
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            sockets = []
            for family, kind, protocol, _, address in dict.fromkeys(found):
                sockets.append(opened.enter_context(socket.socket(family, kind, protocol)))
                sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sockets[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sockets[-1].bind(address)
        yield sockets


def listen(sockets: Sequence[socket.socket], host: str, port: int) -> None:
    """Accept connections; two servers that were bound at the same time find here that the address is taken."""
    with _translated(host, port):
        for opened in sockets:
            opened.listen(BACKLOG)


@contextmanager
def _translated(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:  # the latter of a name that cannot be looked up at all
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"expected to listen on {host}, port {port}, found: {reason}; choose another --port or --host"
        ) from None


def serve(
    registry_uri: str,
    *,
    data_uri: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    poll_seconds: float = 30.0,
) -> None:
    """Serve the champion until stopped; listens only once it has answered a query.

    With ``data_uri`` the events there are held in memory, and requests may name a user instead of carrying a history.
    Raises ``UserError`` for an address that is taken, before anything is loaded, and where there is no champion, or one
    that cannot be read.
    """
    if not 1 <= port <= 65_535:
        raise UserError(f"expected a port between 1 and 65535, found {port}")
    if not poll_seconds > 0:
        raise UserError(f"expected poll_seconds above 0, found {poll_seconds}")
    with bound(host, port) as sockets:
        use_one_core()
        tables = read_tables(data_uri) if data_uri else None
        loader = ChampionLoader(Registry.existing(registry_uri))
        model = first_model(loader, tables)
        app.add_middleware(RequestGuard, on_refusal=monitoring.refused)
        settle()
        server = ChampionServer(model, loader, sockets=sockets, poll_seconds=poll_seconds)
        listen(sockets, host, port)
        say(f"serve: {model.version} answered a query; listening on http://{host}:{port}/v2/models/{MODEL_NAME}")
        server.start([model])
