"""The clock of the pool: an event loop over cores, units and memory slots, as the manual's section on time says.

It must not know data: it sees when things happen, never what is computed. All leases run in one loop on shared state.

A cycle is handled in two phases: first slots grant bursts that were requested in earlier cycles, then cores act. What
follows from known facts alone (the next request of a load, the next burst of a save) is worked out ahead of its time.

All state is one array ``m`` of integers (compiled calls with many arrays are slow), laid out by ``clockwork.py``:
sizes, next events, leases, cores; ``k`` is where a core's part begins. ``prog`` has a row per instruction: its timing
table (see ``decode.py``), then when it left the dispatcher, started and ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from corepool.jit import njit

Ints = npt.NDArray[np.int64]
_Function = TypeVar("_Function", bound=Callable[..., Any])
Int = Any  # a machine integer: Python's outside, an int64 in compiled code

NEVER = 1 << 62
UNKNOWN = -1

# The head of m: sizes and times of the configuration, then where the parts are.
(SLOTS, ACTIVE, PERIOD, LINE_BITS, READ_LATENCY, WRITE_LATENCY, DEPTH, FETCH_BURST, BURST, OUTSTANDING,
 BUFFERS, QUEUE, SETUP, SYNC_CYCLES, WATCHDOG, WORD, N_CORES, BANKS, AT_SLOT_NEXT, AT_CORE_NEXT,
 AT_LEASE, LEASE_WIDTH, AT_CORE, CORE_WIDTH, FETCH_RING, ENDS_RING, IN_LOADS, IN_ENDS, IN_WRITES,
 WRITE_WIDTH, IN_QUEUES, IN_LANES, IN_WRITERS, CHANGED, NEXT_RELEASE) = range(35)  # fmt: skip
HEAD = 35

# A lease; behind its columns stand, for each bank, the bytes read and written.
(STATE, START, CORES, ARRIVED, ENDED, PROGRESS, END, FAULT, FAULT_CORE, FAULT_INDEX, FAULT_ADDRESS,
 WINDOW, CORE_MASK, STOPPING, SYNCS_LEFT, SYNCS, RELEASE, HALTED, TRAFFIC) = range(19)  # fmt: skip
IDLE, RUNNING, DONE, FAULTED, STOPPED = range(5)

# A core: lease, program; fetch; dispatch; load; compute; save; tokens; writes; a fault to come; busy times; its slot.
(LEASE, BASE, COUNT, STREAM, F_BYTE, F_STOP, F_LAST, F_HEAD, F_GRANTED, F_ASKED, D_INDEX, D_LAST,
 D_HOLD, D_REACHED, Q_HEAD, Q_HEAD1, Q_HEAD2, Q_TAIL, Q_TAIL1, Q_TAIL2, L_CURRENT, L_OUTER, L_INNER,
 L_OFFSET, L_NEXT, L_FREE, L_ASKED, L_GRANTED, L_ENDED, L_ISSUED, C_CURRENT, C_END, S_CURRENT,
 S_OUTER, S_INNER, S_OFFSET, S_READY, S_END, T_LC, T_CL, T_CS, T_SC, W_PENDING, W_ACK, BAD_TIME,
 BAD_FAULT, BAD_RANK, BAD_INDEX, BAD_ADDRESS, BUSY_LOAD, BUSY_COMPUTE, BUSY_SAVE, FREE, NEXT_TURN,
 SLOT_WRITES, WRITERS, IN_FETCHES) = range(57)  # fmt: skip
GOING, REACHED, WAITING, OVER, RETRACTED, AGAIN = range(6)  # D_HOLD; the last two had arrived early and took it back
STUCK = -2  # L_CURRENT: the load's next request is a fault to come

# Entries of the rings behind a core's columns: requests, and places of a queue.
R_TIME, R_LINES, R_BYTES, R_TAG, R_COMPLETE = range(5)
REQUEST = 5
Q_ROW, Q_LEFT, Q_STARTED = range(3)
PLACE = 3
# Writes into a bank: bursts asked for, granted; then for each buffer when it is free again and its request.
W_ASKED, W_GRANTED, W_BUFFERS = range(3)
BUFFER = 4
W_FREE, W_TIME, W_LINES, W_BYTES = range(4)

# Columns of prog.
(KIND, TOKENS, DURATION, ADDRESS, OUTER, OUTER_STRIDE, INNER, INNER_STRIDE, RUN_BYTES, MASK, STEPS,
 LEFT, STARTED, ENDED_AT) = range(14)  # fmt: skip
PROG_COLUMNS = 14
SYNC_KIND, END_KIND, UNDEFINED_KIND = 3, 4, 5
WAIT_PREV, WAIT_NEXT, RAISE_PREV, RAISE_NEXT = 1, 2, 4, 8
U_LOAD, U_COMPUTE, U_SAVE = 0, 1, 2

F_UNDEFINED, F_WINDOW, F_FOREIGN_SYNC, F_STREAM_END, F_TOKENS, F_WATCHDOG = 1, 2, 3, 4, 5, 6
BY_SAVE, BY_LOAD, BY_FETCH = range(3)  # ranks of windows
MOST_TOKENS = 255
INSTRUCTION = 32  # bytes

# Nothing is allocated here, so arrays need no counting of references, which would take more than half of the time.
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
_compiled: Callable[[_Function], _Function] = njit(**_OPTIONS)


@_compiled
def _core(m: Ints, c: Int) -> Int:
    return m[AT_CORE] + c * m[CORE_WIDTH]


@_compiled
def _lease_of(m: Ints, k: Int) -> Int:
    return m[AT_LEASE] + m[k + LEASE] * m[LEASE_WIDTH]


@_compiled
def _wake(m: Ints, c: Int, time: Int) -> None:
    at = m[AT_CORE_NEXT] + c
    m[at] = min(m[at], time)


@_compiled
def _last_line(m: Ints, local: Int, cycle: Int, lines: Int) -> Int:
    """The cycle in which the last of ``lines`` lines is served, from ``cycle`` on, by slot ``local`` of its bank."""
    turn = (cycle - local + m[SLOTS] - 1) // m[SLOTS]
    block = turn // m[PERIOD]
    rest = turn - block * m[PERIOD]
    if rest >= m[ACTIVE]:
        block += 1
        rest = 0
    last = rest + lines - 1
    more = last // m[ACTIVE]
    return local + m[SLOTS] * ((block + more) * m[PERIOD] + last - more * m[ACTIVE])


@_compiled
def _lines(m: Ints, first: Int, behind: Int) -> Int:
    return (behind - 1 >> m[LINE_BITS]) - (first >> m[LINE_BITS]) + 1


@_compiled
def _bad(m: Ints, c: Int, time: Int, fault: Int, index: Int, address: Int, rank: Int = 0) -> None:
    """Note a fault that core c will meet at ``time``; the earliest counts, then the first of the table, then the one of
    the lowest rank: requests are noted ahead of their time, and not in its order."""
    k = _core(m, c)
    sooner = time < m[k + BAD_TIME]
    if time == m[k + BAD_TIME]:
        sooner = fault < m[k + BAD_FAULT] or (fault == m[k + BAD_FAULT] and rank < m[k + BAD_RANK])
    if sooner:
        m[k + BAD_TIME] = time
        m[k + BAD_FAULT] = fault
        m[k + BAD_RANK] = rank
        m[k + BAD_INDEX] = index
        m[k + BAD_ADDRESS] = address
    _wake(m, c, time)


@_compiled
def _ask(m: Ints, s: Int, time: Int) -> None:
    """Slot s has a request made at ``time``."""
    at = m[AT_SLOT_NEXT] + s
    m[at] = min(m[at], max(m[_core(m, s) + FREE], time + 1))


@_compiled
def fetch_ahead(m: Ints, prog: Ints, c: Int) -> None:
    """Request the stream as far as the instruction buffer's room is known."""
    k = _core(m, c)
    while m[k + F_BYTE] < m[k + F_STOP]:
        first = m[k + F_BYTE]
        behind = min(m[k + F_STOP], (first | m[FETCH_BURST] - 1) + 1)
        index = (behind - m[k + STREAM]) // INSTRUCTION
        time = m[k + F_LAST] + 1
        room = index - m[DEPTH] - 1  # this instruction must have left
        if room >= 0:
            if m[k + D_INDEX] <= room:
                return
            time = max(time, prog[m[k + BASE] + room, LEFT] + 1)
        if behind > m[_lease_of(m, k) + WINDOW]:
            _bad(m, c, time, F_WINDOW, (first - m[k + STREAM]) // INSTRUCTION, first, BY_FETCH)
            m[k + F_BYTE] = m[k + F_STOP]
            return
        q = k + IN_FETCHES + m[k + F_ASKED] % m[FETCH_RING] * REQUEST
        m[q + R_TIME] = time
        m[q + R_LINES] = _lines(m, first, behind)
        m[q + R_BYTES] = behind - first
        m[q + R_TAG] = index
        m[k + F_ASKED] += 1
        m[k + F_BYTE] = behind
        m[k + F_LAST] = time
        _ask(m, c, time)


@_compiled
def _load_ahead(m: Ints, prog: Ints, c: Int) -> None:
    """Make the current load's requests as far as their times are known."""
    k = _core(m, c)
    row = m[k + L_CURRENT]
    if row < 0:
        return
    window = m[_lease_of(m, k) + WINDOW]
    while True:
        q = k + m[IN_LOADS] + m[k + L_ASKED] % m[OUTSTANDING] * REQUEST
        time = m[k + L_NEXT]
        if m[k + L_ASKED] >= m[OUTSTANDING]:
            if m[q + R_COMPLETE] == UNKNOWN:
                return
            time = max(time, m[q + R_COMPLETE])
        start = prog[row, ADDRESS] + m[k + L_OUTER] * prog[row, OUTER_STRIDE] + m[k + L_INNER] * prog[row, INNER_STRIDE]
        first = start + m[k + L_OFFSET]
        stop = start + prog[row, RUN_BYTES]
        behind = min(stop, (first | m[BURST] - 1) + 1)
        if behind > window:
            _bad(m, c, time, F_WINDOW, row - m[k + BASE], first, BY_LOAD)
            m[k + L_CURRENT] = STUCK
            return
        m[q + R_TIME] = time
        m[q + R_LINES] = _lines(m, first, behind)
        m[q + R_BYTES] = behind - first
        m[q + R_TAG] = -1
        m[q + R_COMPLETE] = UNKNOWN
        m[k + L_ASKED] += 1
        m[k + L_NEXT] = time + 1
        _ask(m, c, time)
        m[k + L_OFFSET] = behind - start
        if behind == stop:
            m[k + L_OFFSET] = 0
            m[k + L_INNER] += 1
            if m[k + L_INNER] == prog[row, INNER]:
                m[k + L_INNER] = 0
                m[k + L_OUTER] += 1
                if m[k + L_OUTER] == prog[row, OUTER]:
                    m[q + R_TAG] = row
                    m[k + m[IN_ENDS] + m[k + L_ISSUED] % m[ENDS_RING]] = row
                    m[k + L_ISSUED] += 1
                    m[k + L_CURRENT] = -1
                    m[k + L_FREE] = time + 1
                    m[k + BUSY_LOAD] += time + 1 - prog[row, STARTED]
                    _wake(m, c, time + 1)
                    return


@_compiled
def _save_begin(m: Ints, k: Int, mask: Int) -> Int:
    """When the next burst of a save can begin, or UNKNOWN while one of its buffers waits for a slot."""
    begin = m[k + S_READY]
    for b in range(m[BANKS]):
        if mask >> b & 1 and m[k + m[IN_LANES] + b] >= 0:
            w = k + m[IN_WRITES] + b * m[WRITE_WIDTH]
            if m[w + W_ASKED] >= m[BUFFERS]:
                free = m[w + W_BUFFERS + m[w + W_ASKED] % m[BUFFERS] * BUFFER + W_FREE]
                if free == UNKNOWN:
                    return UNKNOWN
                begin = max(begin, free)
    return begin


@_compiled
def _banks_held(m: Ints, k: Int, mask: Int) -> Any:
    """Whether the lease has a core in every bank of the mask."""
    for b in range(m[BANKS]):
        if mask >> b & 1 and m[k + m[IN_LANES] + b] < 0:
            return False
    return mask >> m[BANKS] == 0


@_compiled
def _save_ahead(m: Ints, prog: Ints, c: Int) -> None:
    """Begin the current save's bursts as far as their times are known."""
    k = _core(m, c)
    row = m[k + S_CURRENT]
    if row < 0 or m[k + S_END] != UNKNOWN or m[k + S_READY] == NEVER:
        return
    mask = prog[row, MASK]
    window = m[_lease_of(m, k) + WINDOW]
    held = _banks_held(m, k, mask)
    while True:
        begin = _save_begin(m, k, mask)
        if begin == UNKNOWN:
            return
        start = prog[row, ADDRESS] + m[k + S_OUTER] * prog[row, OUTER_STRIDE] + m[k + S_INNER] * prog[row, INNER_STRIDE]
        first = start + m[k + S_OFFSET]
        stop = start + prog[row, RUN_BYTES]
        behind = min(stop, (first | m[BURST] - 1) + 1)
        if behind > window or not held:
            _bad(m, c, begin, F_WINDOW, row - m[k + BASE], first, BY_SAVE)
            m[k + S_READY] = NEVER
            return
        time = begin + (behind - first) // m[WORD]
        lines = _lines(m, first, behind)
        for b in range(m[BANKS]):
            if mask >> b & 1:
                w = k + m[IN_WRITES] + b * m[WRITE_WIDTH]
                q = w + W_BUFFERS + m[w + W_ASKED] % m[BUFFERS] * BUFFER
                m[q + W_FREE] = UNKNOWN
                m[q + W_TIME] = time
                m[q + W_LINES] = lines
                m[q + W_BYTES] = behind - first
                m[w + W_ASKED] += 1
                m[k + W_PENDING] += 1
                s = m[k + m[IN_LANES] + b]
                m[_core(m, s) + SLOT_WRITES] += 1
                _ask(m, s, time)
        m[k + S_READY] = time
        m[k + S_OFFSET] = behind - start
        if behind == stop:
            m[k + S_OFFSET] = 0
            m[k + S_INNER] += 1
            if m[k + S_INNER] == prog[row, INNER]:
                m[k + S_INNER] = 0
                m[k + S_OUTER] += 1
                if m[k + S_OUTER] == prog[row, OUTER]:
                    m[k + S_END] = time
                    prog[row, ENDED_AT] = time
                    _wake(m, c, time)
                    return


@_compiled
def _head_time(m: Ints, s: Int, k: Int, who: Int) -> Int:
    """When the slot's requester (0 fetch, 1 load, then its writers) made its oldest open request."""
    if who == 0:
        if m[k + F_GRANTED] < m[k + F_ASKED]:
            return m[k + IN_FETCHES + m[k + F_GRANTED] % m[FETCH_RING] * REQUEST + R_TIME]
    elif who == 1:
        if m[k + L_GRANTED] < m[k + L_ASKED]:
            return m[k + m[IN_LOADS] + m[k + L_GRANTED] % m[OUTSTANDING] * REQUEST + R_TIME]
    else:
        w = _core(m, m[k + m[IN_WRITERS] + who - 2]) + m[IN_WRITES] + s // m[SLOTS] * m[WRITE_WIDTH]
        if m[w + W_GRANTED] < m[w + W_ASKED]:
            return m[w + W_BUFFERS + m[w + W_GRANTED] % m[BUFFERS] * BUFFER + W_TIME]
    return NEVER


@_compiled
def _grant_read(m: Ints, prog: Ints, s: Int, t: Int, load: bool) -> None:
    k = _core(m, s)
    b = s // m[SLOTS]
    if load:
        q = k + m[IN_LOADS] + m[k + L_GRANTED] % m[OUTSTANDING] * REQUEST
        m[k + L_GRANTED] += 1
    else:
        q = k + IN_FETCHES + m[k + F_GRANTED] % m[FETCH_RING] * REQUEST
        m[k + F_GRANTED] += 1
    last = _last_line(m, s - b * m[SLOTS], t, m[q + R_LINES])
    complete = last + m[READ_LATENCY]
    m[k + FREE] = last + 1
    m[q + R_COMPLETE] = complete
    m[_lease_of(m, k) + TRAFFIC + 2 * b] += m[q + R_BYTES]
    if not load:
        _wake(m, s, complete)
        return
    row = m[q + R_TAG]
    if row >= 0:
        prog[row, ENDED_AT] = complete
        _wake(m, s, complete)
    _load_ahead(m, prog, s)


@_compiled
def _grant_write(m: Ints, prog: Ints, s: Int, t: Int, writer: Int) -> None:
    k = _core(m, writer)
    b = s // m[SLOTS]
    w = k + m[IN_WRITES] + b * m[WRITE_WIDTH]
    q = w + W_BUFFERS + m[w + W_GRANTED] % m[BUFFERS] * BUFFER
    last = _last_line(m, s - b * m[SLOTS], t, m[q + W_LINES])
    m[w + W_GRANTED] += 1
    slot = _core(m, s)
    m[slot + SLOT_WRITES] -= 1
    m[slot + FREE] = last + 1
    m[q + W_FREE] = last + 1
    m[_lease_of(m, k) + TRAFFIC + 2 * b + 1] += m[q + W_BYTES]
    m[k + W_PENDING] -= 1
    m[k + W_ACK] = max(m[k + W_ACK], last + m[WRITE_LATENCY])
    if (m[k + D_HOLD] == REACHED or m[k + D_HOLD] >= RETRACTED) and m[k + W_PENDING] == 0:
        _wake(m, writer, max(t, m[k + W_ACK]))
    _save_ahead(m, prog, writer)


@_compiled
def _grant(m: Ints, prog: Ints, s: Int, t: Int) -> None:
    """Slot s grants one burst in cycle t; whoever asked learns when it ends."""
    k = _core(m, s)
    writers = m[k + WRITERS]
    count = 2 + writers
    who = m[k + NEXT_TURN]
    for _ in range(count):
        if (who < 2 or m[k + SLOT_WRITES] > 0) and _head_time(m, s, k, who) < t:
            break
        who = who + 1 if who + 1 < count else 0
    m[k + NEXT_TURN] = who + 1 if who + 1 < count else 0
    if who < 2:
        _grant_read(m, prog, s, t, who == 1)
    else:
        _grant_write(m, prog, s, t, m[k + m[IN_WRITERS] + who - 2])
    soonest = min(_head_time(m, s, k, 0), _head_time(m, s, k, 1))
    if m[k + SLOT_WRITES] > 0:
        for other in range(2, count):
            if soonest < m[k + FREE]:
                break
            soonest = min(soonest, _head_time(m, s, k, other))
    m[m[AT_SLOT_NEXT] + s] = NEVER if soonest == NEVER else max(m[k + FREE], soonest + 1)


@_compiled
def _start_time(m: Ints, prog: Ints, k: Int, unit: Int) -> Int:
    """When the unit can start the instruction at the head of its queue, as far as is known now."""
    head = m[k + Q_HEAD + unit]
    if head == m[k + Q_TAIL + unit]:
        return NEVER
    q = k + m[IN_QUEUES] + (unit * m[QUEUE] + head % m[QUEUE]) * PLACE
    tokens = prog[m[q + Q_ROW], TOKENS]
    time = m[q + Q_LEFT] + 1
    if unit == U_LOAD:
        if m[k + L_CURRENT] != -1 or (tokens & WAIT_NEXT and m[k + T_CL] == 0):
            return NEVER
        return max(time, m[k + L_FREE])
    if unit == U_COMPUTE:
        if m[k + C_CURRENT] >= 0 or (tokens & WAIT_PREV and m[k + T_LC] == 0):
            return NEVER
        return NEVER if tokens & WAIT_NEXT and m[k + T_SC] == 0 else time
    if m[k + S_CURRENT] >= 0 or (tokens & WAIT_PREV and m[k + T_CS] == 0):
        return NEVER
    return time


@_compiled
def _begin(m: Ints, prog: Ints, c: Int, unit: Int, t: Int) -> None:
    """The unit starts the head of its queue in cycle t and takes its tokens."""
    k = _core(m, c)
    q = k + m[IN_QUEUES] + (unit * m[QUEUE] + m[k + Q_HEAD + unit] % m[QUEUE]) * PLACE
    m[k + Q_HEAD + unit] += 1
    m[q + Q_STARTED] = t
    row = m[q + Q_ROW]
    prev = prog[row, TOKENS] & WAIT_PREV
    following = prog[row, TOKENS] >> 1 & 1
    prog[row, STARTED] = t
    if unit == U_LOAD:
        m[k + T_CL] -= following
        m[k + L_CURRENT] = row
        m[k + L_OUTER] = m[k + L_INNER] = m[k + L_OFFSET] = 0
        m[k + L_NEXT] = t + m[SETUP]
        _load_ahead(m, prog, c)
    elif unit == U_COMPUTE:
        m[k + T_LC] -= prev
        m[k + T_SC] -= following
        m[k + C_CURRENT] = row
        m[k + C_END] = prog[row, ENDED_AT] = t + prog[row, DURATION]
    else:
        m[k + T_CS] -= prev
        m[k + S_CURRENT] = row
        m[k + S_OUTER] = m[k + S_INNER] = m[k + S_OFFSET] = 0
        m[k + S_READY] = t + m[SETUP]
        m[k + S_END] = UNKNOWN
        _save_ahead(m, prog, c)


@_compiled
def _raise(m: Ints, c: Int, row: Int, column: Int, t: Int) -> None:
    k = _core(m, c)
    m[k + column] += 1
    if m[k + column] > MOST_TOKENS:
        _bad(m, c, t, F_TOKENS, row - m[k + BASE], 0)


@_compiled
def _ends(m: Ints, prog: Ints, c: Int, t: Int) -> None:
    """Instructions that end in cycle t raise their tokens."""
    k = _core(m, c)
    progress = _lease_of(m, k) + PROGRESS
    if m[k + L_ENDED] < m[k + L_ISSUED]:
        row = m[k + m[IN_ENDS] + m[k + L_ENDED] % m[ENDS_RING]]
        if prog[row, ENDED_AT] != UNKNOWN and prog[row, ENDED_AT] <= t:
            m[k + L_ENDED] += 1
            m[progress] = max(m[progress], t)
            if prog[row, TOKENS] & RAISE_NEXT:
                _raise(m, c, row, T_LC, t)
    row = m[k + C_CURRENT]
    if row >= 0 and m[k + C_END] <= t:
        m[k + C_CURRENT] = -1
        m[k + BUSY_COMPUTE] += prog[row, DURATION]
        m[progress] = max(m[progress], t)
        if prog[row, TOKENS] & RAISE_PREV:
            _raise(m, c, row, T_CL, t)
        if prog[row, TOKENS] & RAISE_NEXT:
            _raise(m, c, row, T_CS, t)
    row = m[k + S_CURRENT]
    if row >= 0 and m[k + S_END] != UNKNOWN and m[k + S_END] <= t:
        m[k + S_CURRENT] = -1
        m[k + BUSY_SAVE] += t - prog[row, STARTED]
        m[progress] = max(m[progress], t)
        if prog[row, TOKENS] & RAISE_PREV:
            _raise(m, c, row, T_SC, t)


@_compiled
def _dispatch(m: Ints, prog: Ints, c: Int, t: Int) -> Int:
    """Let one instruction leave in cycle t if it can; returns when to look again (NEVER: when something happens)."""
    k = _core(m, c)
    index = m[k + D_INDEX]
    time = m[k + D_LAST] + 1
    if index >= m[k + COUNT]:
        if time <= t:
            if m[k + BAD_TIME] >= t:
                _bad(m, c, t, F_STREAM_END, index, 0)
            return NEVER
        return time
    while (
        m[k + F_HEAD] < m[k + F_GRANTED]
        and m[k + IN_FETCHES + m[k + F_HEAD] % m[FETCH_RING] * REQUEST + R_TAG] <= index
    ):
        m[k + F_HEAD] += 1
    if m[k + F_HEAD] == m[k + F_GRANTED]:
        return NEVER
    time = max(time, m[k + IN_FETCHES + m[k + F_HEAD] % m[FETCH_RING] * REQUEST + R_COMPLETE])
    if time > t:
        return time
    row = m[k + BASE] + index
    kind = prog[row, KIND]
    if kind == UNDEFINED_KIND:
        _bad(m, c, t, F_UNDEFINED, index, 0)
        return NEVER
    if kind >= SYNC_KIND:
        if kind == SYNC_KIND and prog[row, MASK] != m[_lease_of(m, k) + CORE_MASK]:
            _bad(m, c, t, F_FOREIGN_SYNC, index, 0)
            return NEVER
        m[k + D_HOLD] = REACHED
        m[k + D_REACHED] = t
        prog[row, STARTED] = t
        return NEVER
    number = m[k + Q_TAIL + kind]
    q = k + m[IN_QUEUES] + (kind * m[QUEUE] + number % m[QUEUE]) * PLACE
    if number >= m[QUEUE]:
        if m[k + Q_HEAD + kind] <= number - m[QUEUE]:
            return NEVER
        if m[q + Q_STARTED] + 1 > t:
            return m[q + Q_STARTED] + 1
    m[q + Q_ROW] = row
    m[q + Q_LEFT] = t
    m[k + Q_TAIL + kind] = number + 1
    m[k + D_INDEX] = index + 1
    m[k + D_LAST] = t
    prog[row, LEFT] = t
    fetch_ahead(m, prog, c)
    return t + 1


@_compiled
def halt(m: Ints) -> None:
    """Take the cores and slots of leases that have stopped out of the loop."""
    m[CHANGED] = 0
    for c in range(m[N_CORES]):
        k = _core(m, c)
        if m[k + LEASE] < 0 or m[_lease_of(m, k) + STATE] != RUNNING:
            m[m[AT_CORE_NEXT] + c] = NEVER
            m[m[AT_SLOT_NEXT] + c] = NEVER


@_compiled
def _release(m: Ints, prog: Ints, lease: Int, time: Int) -> None:
    """All cores of the lease have met: their dispatchers go on at ``time``."""
    m[lease + ARRIVED] = m[lease + RELEASE] = 0
    m[lease + PROGRESS] = time
    m[lease + SYNCS] += 1
    m[lease + SYNCS_LEFT] -= min(m[lease + STOPPING], m[lease + SYNCS_LEFT])
    for c in range(m[N_CORES]):
        k = _core(m, c)
        if m[k + LEASE] >= 0 and _lease_of(m, k) == lease:
            row = m[k + BASE] + m[k + D_INDEX]
            prog[row, LEFT] = time - 1
            prog[row, ENDED_AT] = time
            m[k + D_HOLD] = GOING
            m[k + D_INDEX] += 1
            m[k + D_LAST] = time - 1
            _wake(m, c, time)
            fetch_ahead(m, prog, c)


@_compiled
def _releases(m: Ints, prog: Ints, t: Int) -> None:
    """Let leases go on whose time has come."""
    soonest = NEVER
    for number in range(m[N_CORES]):
        lease = m[AT_LEASE] + number * m[LEASE_WIDTH]
        if m[lease + STATE] == RUNNING and m[lease + RELEASE] > 0:
            if m[lease + RELEASE] <= t:
                _release(m, prog, lease, m[lease + RELEASE])
            else:
                soonest = min(soonest, m[lease + RELEASE])
    m[NEXT_RELEASE] = soonest


@_compiled
def _meet(m: Ints, lease: Int, t: Int) -> None:
    """One core more has arrived: when all have, the lease goes on a little later, or stops here if it was asked to."""
    m[lease + ARRIVED] += 1
    if m[lease + ARRIVED] < m[lease + CORES]:
        return
    m[lease + PROGRESS] = t + m[SYNC_CYCLES]
    if _shall_stop(m, lease):
        m[lease + HALTED] = m[CHANGED] = 1
    else:
        m[lease + RELEASE] = t + m[SYNC_CYCLES]
        m[NEXT_RELEASE] = min(m[NEXT_RELEASE], m[lease + RELEASE])


@_compiled
def _shall_stop(m: Ints, lease: Int) -> Any:
    """Whether the lease stops at the SYNC that it reaches next, or is at."""
    return m[lease + STOPPING] == 1 and m[lease + SYNCS_LEFT] == 0


@_compiled
def ask_to_stop(m: Ints, prog: Ints, number: Int, t: Int, enable: Int, passing: Int) -> None:
    """From cycle t on the lease shall stop at a SYNC after ``passing`` more, or (not ``enable``) shall not.

    A SYNC that all cores have met counts as passed when the dispatchers go on. Cores that have arrived early must
    arrive again with everything done.
    """
    lease = m[AT_LEASE] + number * m[LEASE_WIDTH]
    if m[lease + STATE] != RUNNING:
        return
    m[lease + STOPPING] = enable
    m[lease + SYNCS_LEFT] = passing
    pending = m[lease + RELEASE] > 0
    if _shall_stop(m, lease):
        m[lease + RELEASE] = 0
        for c in range(m[N_CORES]):
            k = _core(m, c)
            if m[k + LEASE] == number and m[k + D_HOLD] == WAITING:
                m[k + D_HOLD] = REACHED if m[k + D_REACHED] == t else RETRACTED
                m[lease + ARRIVED] -= 1
            elif m[k + LEASE] == number and m[k + D_HOLD] == AGAIN:
                m[k + D_HOLD] = RETRACTED
        for c in range(m[N_CORES]):
            k = _core(m, c)
            if m[k + LEASE] == number and (m[k + D_HOLD] == REACHED or m[k + D_HOLD] == RETRACTED):
                _arrive(m, prog, c, t)
                _wake(m, c, t)
        if pending and m[lease + ARRIVED] < m[lease + CORES]:
            m[lease + PROGRESS] = t + 1
    else:
        for c in range(m[N_CORES]):
            k = _core(m, c)
            if m[k + LEASE] == number and m[k + D_HOLD] == RETRACTED:
                m[k + D_HOLD] = AGAIN
                m[k + D_REACHED] = t + 1
            if m[k + LEASE] == number and (m[k + D_HOLD] == REACHED or m[k + D_HOLD] == AGAIN):
                _wake(m, c, t + 1)
    _stop(m, t)


@_compiled
def _stop(m: Ints, t: Int) -> None:
    """Leases whose cores have met at the SYNC where they shall stop, and that no fault stopped in this very cycle."""
    for number in range(m[N_CORES]):
        lease = m[AT_LEASE] + number * m[LEASE_WIDTH]
        if m[lease + STATE] == RUNNING and m[lease + HALTED] == 1:
            m[lease + STATE] = STOPPED
            m[lease + END] = t
            m[CHANGED] = 1
    if m[CHANGED]:
        halt(m)


@_compiled
def _arrive(m: Ints, prog: Ints, c: Int, t: Int) -> Int:
    """A core held at SYNC or END arrives when all is done (SYNC: or what it waits for); returns when to look again."""
    k = _core(m, c)
    row = m[k + BASE] + m[k + D_INDEX]
    lease = _lease_of(m, k)
    early = prog[row, OUTER] if prog[row, KIND] == SYNC_KIND and not _shall_stop(m, lease) else 0
    if m[k + D_HOLD] == AGAIN and m[k + D_REACHED] <= t:
        m[k + D_HOLD] = WAITING
        m[k + D_REACHED] = t
        _meet(m, lease, t)
        return NEVER
    if m[k + S_CURRENT] >= 0 or m[k + W_PENDING] > 0:
        return NEVER
    if early == 0:
        for unit in range(3):
            if m[k + Q_HEAD + unit] != m[k + Q_TAIL + unit]:
                return NEVER
        if m[k + L_CURRENT] != -1 or m[k + L_ENDED] != m[k + L_ISSUED] or m[k + C_CURRENT] >= 0:
            return NEVER
    elif m[k + Q_TAIL2] - m[k + Q_HEAD2] >= early:
        return NEVER
    time = max(m[k + D_REACHED], m[k + W_ACK])
    if time > t:
        return time
    if prog[row, KIND] == END_KIND:
        m[k + D_HOLD] = OVER
        prog[row, LEFT] = prog[row, ENDED_AT] = t
        m[lease + PROGRESS] = max(m[lease + PROGRESS], t)
        m[lease + ENDED] += 1
        if m[lease + ENDED] == m[lease + CORES] and m[lease + STATE] == RUNNING:
            m[lease + STATE] = DONE
            m[lease + END] = t
            m[CHANGED] = 1
        return NEVER
    m[k + D_HOLD] = WAITING
    m[k + D_REACHED] = t
    _meet(m, lease, t)
    return NEVER


@_compiled
def _fail(m: Ints, lease: Int, t: Int, fault: Int, c: Int, index: Int, address: Int) -> None:
    """Stop a lease, also if it would be done in this very cycle; of several faults, that of the lowest core is told."""
    if m[lease + STATE] != RUNNING and (m[lease + STATE] != DONE or m[lease + END] != t):
        return
    m[lease + STATE] = FAULTED
    m[lease + END] = t
    m[lease + FAULT] = fault
    m[lease + FAULT_CORE] = c
    m[lease + FAULT_INDEX] = index
    m[lease + FAULT_ADDRESS] = address
    m[CHANGED] = 1


@_compiled
def _act(m: Ints, prog: Ints, c: Int, t: Int) -> None:
    """Everything that core c does in cycle t, and when it will act again."""
    k = _core(m, c)
    m[m[AT_CORE_NEXT] + c] = NEVER
    _ends(m, prog, c, t)
    for unit in range(3):
        if _start_time(m, prog, k, unit) <= t:
            _begin(m, prog, c, unit, t)
    again = NEVER
    if m[k + D_HOLD] == GOING:
        again = _dispatch(m, prog, c, t)
    if m[k + D_HOLD] == REACHED or m[k + D_HOLD] >= RETRACTED:
        again = _arrive(m, prog, c, t)
    if m[k + BAD_TIME] <= t:
        _fail(m, _lease_of(m, k), t, m[k + BAD_FAULT], c, m[k + BAD_INDEX], m[k + BAD_ADDRESS])
        return
    again = min(again, m[k + BAD_TIME])
    for unit in range(3):
        again = min(again, _start_time(m, prog, k, unit))
    if m[k + L_ENDED] < m[k + L_ISSUED]:
        end = prog[m[k + m[IN_ENDS] + m[k + L_ENDED] % m[ENDS_RING]], ENDED_AT]
        if end != UNKNOWN:
            again = min(again, end)
    if m[k + C_CURRENT] >= 0:
        again = min(again, m[k + C_END])
    if m[k + S_CURRENT] >= 0 and m[k + S_END] != UNKNOWN:
        again = min(again, m[k + S_END])
    _wake(m, c, again)


@_compiled
def _watch(m: Ints, number: Int, t: Int) -> None:
    """Stop a lease in which nothing has ended for too long; the lowest core that is not at its END is named."""
    lease = m[AT_LEASE] + number * m[LEASE_WIDTH]
    if m[lease + STATE] != RUNNING or t < m[lease + PROGRESS] + m[WATCHDOG]:
        return
    for c in range(m[N_CORES]):
        k = _core(m, c)
        if m[k + LEASE] == number and m[k + D_HOLD] != OVER:
            _fail(m, lease, t, F_WATCHDOG, c, m[k + D_INDEX], 0)
            return


@_compiled
def _watch_time(m: Ints) -> Int:
    """The cycle in which the first watchdog may bark. Progress only moves it further away."""
    soonest = NEVER
    for number in range(m[N_CORES]):
        lease = m[AT_LEASE] + number * m[LEASE_WIDTH]
        if m[lease + STATE] == RUNNING:
            soonest = min(soonest, m[lease + PROGRESS] + m[WATCHDOG])
    return soonest


@_compiled
def advance(m: Ints, prog: Ints, target: Int, limit: Int) -> Int:
    """Run all leases until ``target`` has stopped, or up to cycle ``limit`` if that comes first; returns the cycle."""
    cores = m[N_CORES]
    slot_next = m[m[AT_SLOT_NEXT] : m[AT_SLOT_NEXT] + cores]
    core_next = m[m[AT_CORE_NEXT] : m[AT_CORE_NEXT] + cores]
    state = m[AT_LEASE] + target * m[LEASE_WIDTH] + STATE
    watch = _watch_time(m)
    while True:
        t = min(watch, m[NEXT_RELEASE])
        for c in range(slot_next.shape[0]):
            t = min(t, slot_next[c])
        for c in range(core_next.shape[0]):
            t = min(t, core_next[c])
        if t > limit:
            return limit
        for s in range(slot_next.shape[0]):
            if slot_next[s] <= t:
                _grant(m, prog, s, t)
        if t >= m[NEXT_RELEASE]:
            _releases(m, prog, t)
        for c in range(core_next.shape[0]):
            if core_next[c] <= t:  # also cores of a lease that stops in this very cycle
                _act(m, prog, c, t)
        if t >= watch:
            for number in range(cores):
                _watch(m, number, t)
            watch = _watch_time(m)
        if m[CHANGED]:
            _stop(m, t)
            watch = _watch_time(m)
        if m[state] != RUNNING:
            return t
