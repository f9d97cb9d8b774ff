"""Sampling: several calls timed side by side, in several visits, so that whatever drifts on the machine hits all alike.

All that is timed for one layer is visited together, several times in a run, each time freshly prepared: other memory
pages and another moment. Within a visit the candidates take turns in an order that changes. A turn is a pause, one call
that is thrown away (the pause and the others have cooled caches and clocks down; slow calls, which make their own
warmth, are spared it) and a burst of calls that are timed one by one. Every sample is kept, in order; bursts and visits
are kept apart, because calls of one burst resemble each other more than calls of two, and those of one visit more than
those of two: statistics that ignore this claim too much.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Place = Callable[[], AbstractContextManager[object]]

#: Calls timed in one turn at most, and the seconds that a turn should not take longer than (a slow call gets a shorter
#: burst).
BURST = 5
BURST_SECONDS = 0.1
#: Bursts that a row takes in one visit at most: another visit tells more than more of the same.
VISIT_BURSTS = 8
#: Visits that every layer gets, unless the time is up before.
MIN_VISITS = 3
#: Half the width of the median's 95 % interval, as a fraction of the median, at which a row is known well enough.
TARGET_SPREAD = 0.01


@dataclass
class Series:
    """All that was measured for one row. Times in seconds, in the order taken."""

    burst: int = BURST
    samples: list[float] = field(default_factory=list)
    visits: list[int] = field(default_factory=list)  # how many samples each visit took
    moments: list[float] = field(default_factory=list)  # when (by the visit's clock) each visit was in its middle
    cold: list[float] = field(default_factory=list)  # with evicted weights

    def spread(self) -> float:
        """Half the median's 95 % interval over the median."""
        return median_spread(self.samples, self.burst, self.visits)

    def known(self, target: float = TARGET_SPREAD) -> bool:
        """Whether more samples would hardly change the median."""
        return len(self.visits) >= MIN_VISITS and self.spread() <= target


@dataclass
class Candidate:
    """Something to time. `settle` is the pause in seconds that others need after it, until its own threads have gone to
    sleep; `inputs` the arrays that it reads as its input. `learn` makes the warm-up calls, sees which threads work, and
    says where the calling one goes for its turns (`pinned`)."""

    key: str
    call: Callable[[], object]
    settle: float = 0.001
    series: Series = field(default_factory=Series)
    inputs: tuple[NDArray[Any], ...] = ()
    learn: Callable[[Callable[[], object]], Place] | None = None
    pinned: Place = nullcontext


@dataclass(frozen=True)
class Summary:
    """What the samples say; times in milliseconds. `spread` is half the median's 95 % interval over the median."""

    median: float
    p10: float
    p90: float
    iqr: float
    minimum: float
    spread: float
    count: int


def summarise(series: Series) -> Summary:
    """Statistics of the warm samples, none of them left out. Percentiles interpolate linearly."""
    if not series.samples:
        raise ValueError("samples: at least one is needed, got none")
    values = np.sort(np.asarray(series.samples, dtype=np.float64)) * 1e3
    p10, p25, median, p75, p90 = np.percentile(values, [10, 25, 50, 75, 90])
    spread = median_spread(series.samples, series.burst, series.visits)
    return Summary(float(median), float(p10), float(p90), float(p75 - p25), float(values[0]), spread, len(values))


def median_spread(samples: Sequence[float], burst: int, visits: Sequence[int] | None = None) -> float:
    """Half the width of the median's 95 % interval, as a fraction of the median; infinite for fewer than three bursts.

    From the medians m of the bursts: 1.96 * 1.2533 * s / sqrt(bursts), with s their spread by the interquartile range
    (s = IQR / 1.349) and 1.2533 the loss of a median against a mean under normal noise. With three visits or more the
    same is computed from the visits' medians, and the larger of the two counts.
    """
    parts = split_bursts(samples, burst, visits)
    medians = [float(m) for part in parts for m in part]
    if len(medians) < 3:
        return math.inf
    spread = _interval_of_median(medians)
    if len(parts) >= MIN_VISITS:
        spread = max(spread, _interval_of_median([float(np.median(part)) for part in parts]))
    return spread


def _interval_of_median(values: Sequence[float]) -> float:
    q1, middle, q3 = np.percentile(values, [25, 50, 75])
    if middle <= 0:
        return math.inf
    return float(1.96 * 1.2533 * (q3 - q1) / 1.349 / math.sqrt(len(values)) / middle)


def split_bursts(samples: Sequence[float], burst: int, visits: Sequence[int] | None = None) -> list[F64]:
    """The medians of the full bursts of each visit, in order. A burst that was cut short counts if its visit has no
    other."""
    values = np.asarray(samples, dtype=np.float64)
    counts = list(visits) if visits else [len(values)]
    parts: list[F64] = []
    start = 0
    for count in counts:
        own = values[start : start + count]
        start += count
        full = len(own) // burst
        if full:
            parts.append(np.asarray(np.median(own[: full * burst].reshape(full, burst), axis=1)))
        elif len(own):
            parts.append(np.array([np.median(own)]))
    return parts


@dataclass
class Sampler:
    """How visits are made. `yardstick` measures how fast the machine is just now and is called once a round; `evict`
    empties the caches."""

    yardstick: Callable[[], object] = lambda: None
    evict: Callable[[], object] | None = None
    #: Seconds of calls before a first visit's samples. Later visits, of code that has run before, take half where the
    #: working threads must be found again, and a sixth where they are known.
    warm_up: float = 0.02
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    order: random.Random = field(default_factory=lambda: random.Random(1))
    #: What evicting took last time, in seconds.
    evict_seconds: float = 0.05
    #: What the last visit spent on warming up and on evictions: it costs that however many samples it takes.
    fixed_seconds: float = 0.0

    def visit(self, candidates: Sequence[Candidate], limit: float, cold: int = 0) -> None:
        """Takes samples of all candidates for at most `limit` seconds, and `cold` ones each with evicted caches.

        Each candidate gets at least one burst even if the limit is over by then. A KeyboardInterrupt passes through;
        the samples taken by then stay.
        """
        self.sleep(max((c.settle for c in candidates), default=0.0))  # threads of whatever ran before go to sleep
        start = self.clock()
        counts = [len(c.series.samples) for c in candidates]
        try:
            for candidate in candidates:
                self._warm(candidate)
            self.fixed_seconds = self.clock() - start
            deadline = start + limit - cold * len(candidates) * self.evict_seconds
            for _ in self._rounds(candidates, deadline):
                self.yardstick()
            before_cold = self.clock()
            for _ in range(cold):
                self._cold_round(candidates)
            self.fixed_seconds += self.clock() - before_cold
        finally:
            middle = (start + self.clock()) / 2
            for candidate, before in zip(candidates, counts, strict=True):
                if len(candidate.series.samples) > before:
                    candidate.series.visits.append(len(candidate.series.samples) - before)
                    candidate.series.moments.append(middle)

    def _rounds(self, candidates: Sequence[Candidate], deadline: float) -> Iterator[None]:
        """Turns of all candidates until the deadline or the most that a visit takes; yields after each round. A
        candidate that is known well enough goes on as long as any is not, so that the samples of one layer span the
        same stretch of time."""
        settle = max((c.settle for c in candidates), default=0.0)
        for number in range(VISIT_BURSTS):
            first = number == 0
            if not first and (self.clock() >= deadline or all(c.series.known() for c in candidates)):
                return
            turns = list(candidates)
            self.order.shuffle(turns)
            for candidate in turns:
                if not first and self.clock() >= deadline:
                    return
                self.sleep(settle)
                self._burst(candidate)
                settle = candidate.settle
            # The yardstick uses threads too: those of the last candidate must be asleep.
            self.sleep(settle)
            settle = 0.001
            yield

    def _burst(self, candidate: Candidate) -> None:
        burst = candidate.series.burst
        with candidate.pinned():
            if burst > 1:
                candidate.call()
            for _ in range(burst):
                begin = self.clock()
                candidate.call()
                candidate.series.samples.append(self.clock() - begin)

    def _cold_round(self, candidates: Sequence[Candidate]) -> None:
        assert self.evict is not None
        for candidate in candidates:
            begin = self.clock()
            self.evict()
            self.evict_seconds = self.clock() - begin
            for array in candidate.inputs:  # a layer's input comes from the layer before, its weights do not
                array.max()
            with candidate.pinned():
                begin = self.clock()
                candidate.call()
                candidate.series.cold.append(self.clock() - begin)
            self.sleep(candidate.settle)

    def _warm(self, candidate: Candidate) -> None:
        """Calls it for a while, at least twice unless it is slow: learns where its threads are, and at its first visit
        how many calls make a burst."""
        times: list[float] = []

        def calls() -> None:
            start = end = self.clock()
            enough = self.warm_up
            if candidate.series.visits:
                enough /= 6 if candidate.learn is None else 2
            while not times or end - start < enough:
                begin = self.clock()
                candidate.call()
                end = self.clock()
                times.append(end - begin)

        if candidate.learn is not None:
            candidate.pinned = candidate.learn(calls)
        else:
            calls()
        if not candidate.series.samples:
            candidate.series.burst = max(1, min(BURST, int(BURST_SECONDS / max(min(times), 1e-9))))
