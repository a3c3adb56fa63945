"""Work that several threads ask for at once, done in batches."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Together(Generic[T, R]):
    """``together(item)`` waits for ``work(items)[place of item]``, where `items` are those of all threads that wait.

    There is no window in time: the first item goes at once, and what comes meanwhile is the next batch. So a single
    caller waits for nobody, and the more callers there are, the larger the batches become by themselves.

    Args:
        work: gives a result for each item; always called by the same thread, which ends with this object. It may raise
            whatever it likes; then all items of the batch raise it.
        limit: items of a batch, at most.
    """

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R]], limit: int) -> None:
        self._work, self._limit = work, limit
        self._waiting: deque[tuple[T, Future[R]]] = deque()
        # One thread: PyTorch keeps a pool of threads for each that calls it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="together")

    def __call__(self, item: T) -> R:
        future: Future[R] = Future()
        self._waiting.append((item, future))
        self._thread.submit(self._next)
        return future.result()

    def _next(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(self._limit, len(self._waiting)))]
        if not batch:  # an earlier call has taken what this one was for
            return
        try:
            results = self._work([item for item, _ in batch])
        except BaseException as error:
            for _, future in batch:
                future.set_exception(error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)
