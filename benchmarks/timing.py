"""Sampling: several calls timed side by side, so that whatever drifts on the machine hits all of them alike.

The candidates of one layer take turns. A turn is a pause, one call that is thrown away (the pause and the others have
cooled caches and clocks down; slow calls, which make their own warmth, are spared it) and a burst of calls that are
timed one by one. Turns go on until every candidate's median is known well enough or the time is up. Every sample is
kept, in order; the bursts are kept apart, because calls of one burst resemble each other more than calls of two, and
statistics that ignore this claim too much.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

#: Calls timed in one turn at most, and the seconds that a turn should not take longer than (a slow call gets a shorter
#: burst).
BURST = 5
BURST_SECONDS = 0.1
#: A candidate rests once it has so many samples, however noisy.
MAX_SAMPLES = 400
#: Turns each candidate gets at least, unless the time is up before.
MIN_ROUNDS = 6
#: Half the width of the median's 95 % interval, as a fraction of the median, at which sampling stops.
TARGET_SPREAD = 0.01


@dataclass
class Candidate:
    """Something to time. `settle` is the pause in seconds that others need after it, until its own threads have gone to
    sleep."""

    key: str
    call: Callable[[], object]
    settle: float = 0.001
    burst: int = BURST
    samples: list[float] = field(default_factory=list)  # seconds, in the order taken


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


def summarise(samples: Sequence[float], burst: int = BURST) -> Summary:
    """Statistics of samples in seconds, none of them left out. Percentiles interpolate linearly."""
    if not samples:
        raise ValueError("samples: at least one is needed, got none")
    values = np.sort(np.asarray(samples, dtype=np.float64)) * 1e3
    p10, p25, median, p75, p90 = np.percentile(values, [10, 25, 50, 75, 90])
    return Summary(
        float(median),
        float(p10),
        float(p90),
        float(p75 - p25),
        float(values[0]),
        median_spread(samples, burst),
        len(values),
    )


def median_spread(samples: Sequence[float], burst: int = BURST) -> float:
    """Half the width of the median's 95 % interval, as a fraction of the median; infinite for fewer than three bursts.

    From the medians m of the bursts: 1.96 * 1.2533 * s / sqrt(bursts), with s their spread by the interquartile range
    (s = IQR / 1.349) and 1.2533 the loss of a median against a mean under normal noise.
    """
    medians = burst_medians(samples, burst)
    if len(medians) < 3:
        return math.inf
    q1, middle, q3 = np.percentile(medians, [25, 50, 75])
    if middle <= 0:
        return math.inf
    return float(1.96 * 1.2533 * (q3 - q1) / 1.349 / math.sqrt(len(medians)) / middle)


def burst_medians(samples: Sequence[float], burst: int = BURST) -> NDArray[np.float64]:
    """The median of every full burst, in order. A last burst that was cut short counts if it is the only one."""
    values = np.asarray(samples, dtype=np.float64)
    full = len(values) // burst
    if full == 0:
        return np.array([np.median(values)]) if len(values) else np.empty(0)
    return np.asarray(np.median(values[: full * burst].reshape(full, burst), axis=1))


def measure(
    candidates: Sequence[Candidate],
    time_limit: float,
    *,
    warm_up: float = 0.02,
    min_rounds: int = MIN_ROUNDS,
    target_spread: float = TARGET_SPREAD,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Fills the candidates' `samples`. True if all medians are within `target_spread`, False if the time limit
    (seconds) came first.

    Each candidate gets at least one burst even if the limit is over by then. A KeyboardInterrupt passes through; the
    samples taken by then stay.
    """
    sleep(0.05)  # threads of whatever ran before (the oracle, a peer) go to sleep
    start = clock()
    for candidate in candidates:
        candidate.burst = _warm(candidate, warm_up, clock)
    settle = 0.02
    rounds = 0
    while not all(_done(c, min_rounds, target_spread) for c in candidates):
        # All take turns while any is unsure: the samples of one layer then span the same stretch of time.
        for candidate in candidates:
            if rounds > 0 and clock() - start >= time_limit:
                return False
            if len(candidate.samples) >= MAX_SAMPLES:
                continue
            sleep(settle)
            if candidate.burst > 1:
                candidate.call()
            for _ in range(candidate.burst):
                begin = clock()
                candidate.call()
                candidate.samples.append(clock() - begin)
            settle = candidate.settle
        rounds += 1
    return True


def _warm(candidate: Candidate, seconds: float, clock: Callable[[], float]) -> int:
    """Calls it for so long, at least twice unless it is slow, and says how many calls make a burst."""
    start = clock()
    shortest = math.inf
    while True:
        begin = clock()
        candidate.call()
        end = clock()
        shortest = min(shortest, end - begin)
        if end - start >= seconds:
            return max(1, min(BURST, int(BURST_SECONDS / max(shortest, 1e-9))))


def _done(candidate: Candidate, min_rounds: int, target_spread: float) -> bool:
    count = len(candidate.samples)
    if count >= MAX_SAMPLES:
        return True
    return count >= min_rounds * candidate.burst and median_spread(candidate.samples, candidate.burst) <= target_spread
