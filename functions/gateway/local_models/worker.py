"""A thread for each model: it loads the model once, then answers one request after the other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from gateway.errors import Unavailable
from gateway.local_models.model import LoadedModel
from gateway.local_models.options import LocalModelsError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from gateway.local_models.model import Asked, Begun, Piece

_RECENT = 0.3
"""The weight of the latest answer in the mean of how long they take."""
_DONE = object()


class Worker:
    """One model of the process. Its methods belong to the event loop, except where they say otherwise."""

    def __init__(
        self,
        name: str,
        source: str,
        *,
        queue: int,
        threads: int,
        load: Callable[[str], LoadedModel] = LoadedModel.load,
    ) -> None:
        self.name = name
        self._source = source
        self._queue = queue
        self._threads = threads
        self._load = load
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="local-model")
        self._lock = threading.Lock()
        self._loading: Future[LoadedModel] | None = None
        self._taken = 0
        self._mean_seconds = 1.0

    @property
    def model(self) -> LoadedModel | None:
        """The model, where it is loaded."""
        loading = self._loading
        done = loading is not None and loading.done() and loading.exception() is None
        return loading.result() if loading is not None and done else None

    def preload(self) -> LoadedModel:
        """Load it, or wait until it is; blocks. Raises LocalModelsError."""
        return self._begin_loading().result()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Take a place in the queue. Raises Unavailable (503) where none is left."""
        if self._taken > self._queue:
            raise Unavailable(
                f"The model {self.name} is busy, and {self._queue} requests wait for it already.",
                code="model_busy",
                retry_after=self._mean_seconds * self._taken,
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def run(self, asked: Asked) -> AsyncGenerator[Begun | Piece, None]:
        """Generate in the model's thread. Closing the generator stops it there within a token.

        Raises what LoadedModel.run raises, and Unavailable (503) where the model can't be loaded.
        """
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Begun | Piece | BaseException | object] = asyncio.Queue()
        gone = threading.Event()
        loading = self._begin_loading()

        def tell(item: Begun | Piece | BaseException | object) -> None:
            # Nobody listens any more where the loop has ended meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(told.put_nowait, item)

        def work() -> None:
            try:
                # It was begun before, in this very thread.
                model = loading.result()
                start = time.monotonic()
                for item in model.run(asked, gone):
                    if gone.is_set():
                        return
                    tell(item)
                self._mean_seconds += _RECENT * (time.monotonic() - start - self._mean_seconds)
                tell(_DONE)
            except BaseException as error:  # noqa: BLE001 - raised again, where it is awaited
                tell(error)

        job = self._thread.submit(work)
        try:
            while (item := await told.get()) is not _DONE:
                if isinstance(item, LocalModelsError):
                    raise Unavailable(
                        f"The model {self.name} can't be loaded.", code="model_unavailable", detail=str(item)
                    ) from item
                if isinstance(item, BaseException):
                    raise item
                yield item  # type: ignore[misc]
        finally:
            gone.set()
            job.cancel()

    def close(self) -> None:
        """End the thread once it has nothing to do; requests that still wait are dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin_loading(self) -> Future[LoadedModel]:
        with self._lock:
            loading = self._loading
            failed = loading is not None and loading.done() and loading.exception() is not None
            if loading is None or failed:
                # A failure is tried again at the next request: the network may be back.
                loading = self._loading = self._thread.submit(self._open)
            return loading

    def _open(self) -> LoadedModel:
        model = self._load(self._source)
        with contextlib.suppress(ImportError):  # A stand-in needs none of it.
            import torch  # noqa: PLC0415 - takes seconds

            # OpenMP's bound is the calling thread's own: all of this model's work is done in this one.
            torch.set_num_threads(self._threads)
        return model
