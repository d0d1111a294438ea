"""Strategies that damage valid files, and the property tested for every input.

The property: an input is accepted or refused with a `UserError` of one line, within seconds and limited memory, and no
code in it is run.
"""

import contextlib
import copy
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnet_backbones.errors import UserError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))  # per test; 0: the few fixed ones of `make test`
SECONDS, MEMORY = 20, 2**32  # per input; the largest image takes 400 MB, and it is copied
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400, 10**9]),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, 1e9, 4.3e8, -0.0, 0.5]),
    st.sampled_from(
        ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a\\..\\b", "\0", "a" * 5000, "\ud800", "a\nb"]
    ),
    st.text(max_size=12),
    st.recursive(
        st.none() | st.integers(-3, 99) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=12,
    ),
)


class TooSlow(BaseException):
    """Not an `Exception`, which the code under test might catch."""


def fuzz(family: str, record: Callable, root: Path, strategy: st.SearchStrategy, action: Callable[[Any], Any]) -> None:
    """Call `action` with inputs from `strategy`; some must be accepted and some refused.

    Args:
        record: pytest's `record_property`, which passes the counts to the summary.
        root: code in an input creates `root / "canary"`.
    """
    counts: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES or 20,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(example: Any) -> None:
        with limits():
            verdict = outcome(action, example)
        assert not (root / "canary").exists(), "code in the file was run"
        counts[verdict] += 1

    one()
    record("fuzz", (family, counts["accepted"], counts["refused"]))
    assert counts["accepted"], "every input was refused"
    assert counts["refused"], "every input was accepted"


def outcome(action: Callable[[Any], Any], example: Any) -> str:
    try:
        action(example)
    except UserError as error:
        refusal = error
    else:
        return "accepted"
    assert str(refusal).strip()
    assert "\n" not in str(refusal)
    cause: BaseException | None = refusal
    while cause is not None:  # running out of memory is not a refusal
        assert not isinstance(cause, MemoryError), "it ran out of memory"
        assert "allocate" not in str(cause), str(cause)
        cause = cause.__cause__ or cause.__context__
    return "refused"


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Raise `TooSlow` in the block if it takes too long, and let it run out of memory if it takes too much."""

    def stop(*_: Any) -> None:
        raise TooSlow(f"it takes more than {SECONDS} s")

    virtual = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, virtual[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, virtual)


def paths_of(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in nested dicts and lists."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from paths_of(child, (*path, key))


@st.composite
def mutated(draw: Callable, make: Callable[[], Any], special: st.SearchStrategy = JUNK, most: int = 3) -> Any:
    """The result of `make()` with up to `most` parts replaced, removed or duplicated."""
    content = make()
    for _ in range(draw(st.integers(0, most))):
        path = draw(st.sampled_from(list(paths_of(content))))
        if not path:
            continue
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(["junk", "junk", "special", "remove", "double"]))
        if kind == "remove":
            del parent[path[-1]]
        elif kind == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        else:
            parent[path[-1]] = copy.deepcopy(draw(special if kind == "special" else JUNK))
    return content


EXTREMES = st.sampled_from([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1])


@st.composite
def mutated_bytes(draw: Callable, content: bytes, most: int = 4) -> bytes:
    """`content` with bytes flipped, overwritten, removed, duplicated or truncated, often near the beginning."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, most))):
        if not data:
            break
        at = draw(st.integers(0, min(64, len(data) - 1)) | st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(["flip", "flip", "number", "text", "cut", "remove", "double"]))
        length = draw(st.integers(1, 16))
        if kind == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "number":
            size, order = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["big", "little"]))
            data[at : at + size] = (draw(EXTREMES) % 256**size).to_bytes(size, order)
        elif kind == "text":
            data[at : at + length] = draw(st.binary(max_size=16))
        elif kind == "cut":
            del data[at:]
        else:
            data[at : at + length] = data[at : at + length] * (2 if kind == "double" else 0)
    return bytes(data)
