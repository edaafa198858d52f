"""One function over many items on all processors: processes that each have a lab, results in the order of the items.

It must not know what is being investigated, nor what a lab is made of.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from corepool.errors import CorepoolError

if TYPE_CHECKING:
    from corepool.evaluation.lab import Lab

Tell = Callable[[str, float], None]
Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 8  # processes; each takes up to a gigabyte
TICK_S = 0.2  # between looks at whether somebody wants the program to end

_here: Lab | None = None  # of a worker


class Make(Protocol):
    """Makes a worker's lab; it travels to other processes, so it is no lambda."""

    def __call__(self) -> Lab: ...


def processors() -> int:
    """Processors that this process may use, at most MOST."""
    return max(1, min(len(os.sched_getaffinity(0)), MOST))


def _settle(make: Make, parent: int) -> None:
    """Begin of a worker: its lab; Ctrl-C is the parent's to see; without a parent it ends."""
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_mourn, args=(parent,), daemon=True).start()
    _here = make()


def _mourn(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _carry_out(function: Callable[[Lab, Any], Any], item: Any) -> tuple[Any, float]:
    """The result, and the processor time that it took, seconds."""
    assert _here is not None
    begin = time.process_time()
    return function(_here, item), time.process_time() - begin


class Crew:
    """Worker processes, started at first use. ``cpu_s``: processor time that they spent on items."""

    def __init__(self, make: Make, processes: int) -> None:
        self._make, self.processes = make, processes
        self._pool: ProcessPoolExecutor | None = None
        self.cpu_s = 0.0

    def each(
        self, function: Callable[[Lab, Item], Result], items: Sequence[tuple[str, Item]], tell: Tell
    ) -> list[Result]:
        """``function`` of every item, in their order; those in front begin first. ``tell`` gets an item's text.

        Raises what the function raises, and CorepoolError if a process ended by itself.
        """
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.processes, context, _settle, (self._make, os.getpid()))
        doing: dict[Future[tuple[Result, float]], str] = {}
        futures = []
        try:
            for text, item in items:
                future = self._pool.submit(_carry_out, function, item)
                doing[future] = text
                futures.append(future)
            while doing:
                ended, _ = wait(doing, TICK_S, FIRST_COMPLETED)
                for future in ended:
                    del doing[future]
                    self.cpu_s += future.result()[1]
                if doing:
                    tell(next(iter(doing.values())), 1 - len(doing) / len(items))
            return [future.result()[0] for future in futures]
        except BrokenProcessPool:
            self.close(at_once=True)
            raise CorepoolError("a process of the evaluation was ended; is there memory enough? Try --jobs 1") from None
        except BaseException:
            self.close(at_once=True)
            raise

    def close(self, at_once: bool = False) -> None:
        """End the processes; ``at_once`` does not wait for what they do."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if at_once:
            for process in multiprocessing.active_children():
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def crew(make: Make, processes: int) -> Iterator[Crew | None]:
    """A crew for a block, or none for a single process."""
    made = Crew(make, processes) if processes > 1 else None
    try:
        yield made
    finally:
        if made is not None:
            made.close()


def in_turn(
    lab: Lab, function: Callable[[Lab, Item], Result], items: Sequence[tuple[str, Item]], tell: Tell
) -> list[Result]:
    """The same in this process, one item after the other."""
    results = []
    for number, (text, item) in enumerate(items):
        tell(text, number / len(items))
        results.append(function(lab, item))
    return results
