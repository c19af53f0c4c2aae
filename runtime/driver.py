"""Runs a `Loop` on any engine: the one driver for programs and bundles.

The driver moves handles between state slots and engine calls; it never looks inside them. Only the
flags of `Repeat.until`, appended results and the final results are copied to the host.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from optimize.runtime import philox
from optimize.runtime.loop import Binding, Call, Destination, Loop, Repeat, Slot, size_of

Handle = Any
"""An engine's own array type; only the engine that made it may use it."""

Progress = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all)."""


class Engine(Protocol):
    """Runs graphs.

    `upload` and `download` copy: a handle never shares memory with an array. `run` computes the
    outputs that are named; it may write one into the buffer offered for it, or return a new handle
    (it must where no buffer is offered), but never a handle it was given as an input.
    """

    def upload(self, array: NDArray[Any], dtype: str) -> Handle: ...

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Handle: ...

    def download(self, handle: Handle) -> NDArray[Any]: ...

    def run(
        self, graph: str, inputs: Mapping[str, Handle], outputs: Mapping[str, Handle | None]
    ) -> Mapping[str, Handle]: ...


TableRows = dict[tuple[str, int, int | None], Handle]
"""Table, first row and number of rows → what an engine uploaded of them."""


@dataclass(frozen=True)
class Part:
    """What one call appended to a result.

    Attributes:
        array: [B, ...]; with `counts` [B, S, ...].
        counts: [B], how many elements of each sample count; None for the array as it is.
        fill: what stands behind the elements of a shorter sample.
    """

    array: NDArray[Any]
    counts: NDArray[Any] | None = None
    fill: int = 0

    def of_sample(self, sample: int) -> NDArray[Any]:
        """The elements of one sample, [n, ...]."""
        if self.counts is None:
            return self.array[sample : sample + 1]
        row: NDArray[Any] = self.array[sample, : self.counts[sample]]
        return row


def joined(parts: Sequence[Part]) -> NDArray[Any]:
    """The parts of a result one after another in its second dimension."""
    if all(part.counts is None for part in parts):
        return np.stack([part.array for part in parts], axis=min(1, parts[0].array.ndim))
    samples = [
        np.concatenate([part.of_sample(sample) for part in parts])
        for sample in range(len(parts[0].array))
    ]
    longest = max((len(sample) for sample in samples), default=0)
    shape = (len(samples), longest, *parts[0].array.shape[2:])
    result = np.full(shape, parts[0].fill, parts[0].array.dtype)
    for row, sample in zip(result, samples, strict=True):
        row[: len(sample)] = sample
    return result


@dataclass
class Run:
    """One execution of a loop. Make a new one for each request.

    `rows` holds the uploaded rows of the tables, which no call changes: whoever answers many
    requests with one engine keeps it from run to run.
    """

    loop: Loop
    tables: Mapping[str, NDArray[Any]]
    engine: Engine
    sizes: dict[str, int]
    request: Mapping[str, NDArray[Any]]
    request_dtypes: Mapping[str, str]
    seed: int
    progress: Progress | None = None
    rows: TableRows = field(default_factory=dict)
    appended: dict[str, list["Part"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._noise = {noise.name: noise for noise in self.loop.noise}
        self._slots = {slot.name: slot for slot in self.loop.slots}
        self._request: dict[str, Handle] = {}
        # A buffer a slot no longer uses; the next call that writes the slot may write into it.
        self._spare: dict[str, Handle] = {}
        self._routes: dict[int, _Route] = {}
        self._done = 0
        self._total = sum(len(item.steps) for item in self.loop.body if isinstance(item, Repeat))

    def execute(self) -> dict[str, NDArray[Any]]:
        """Runs the loop and returns the results on the host."""
        for _ in self.steps():
            pass
        return self.results()

    def steps(self) -> Iterator[None]:
        """Runs the loop, pausing after each call that appended something.

        What is there so far is in `appended`. Whoever stops asking leaves the rest undone.
        """
        self.begin()
        for item in self.loop.body:
            yield from self._execute(item, 0)

    def results(self) -> dict[str, NDArray[Any]]:
        """The results on the host.

        The parts [B, ...] of an appended one lie in its second dimension: [B, parts, ...]; where
        parts have counts, the elements of each sample do, one after another.
        """
        results = {name: joined(parts) for name, parts in self.appended.items()}
        for name, slot in self.loop.results.items():
            results[name] = self.engine.download(self._state[slot])
        return results

    def begin(self) -> None:
        """Gives every state slot its initial value."""
        self._state = {name: self._initial(name) for name in self._slots}

    def inputs(self, call: Call, step: int) -> dict[str, Handle]:
        """What a call would get at a step, with the slots as they are now."""
        route = self._route(call)
        inputs = {name: self._state[slot] for name, slot in route.from_state}
        for name, binding in route.from_elsewhere:
            inputs[name] = self._value(binding, step)
        return inputs

    def read(self, slot: str) -> NDArray[Any]:
        """The current value of a state slot, on the host."""
        return self.engine.download(self._state[slot]).copy()

    def _shape(self, dimensions: tuple[int | str, ...]) -> tuple[int, ...]:
        return tuple(size_of(dimension, self.sizes) for dimension in dimensions)

    def _initial(self, name: str) -> Handle:
        slot = self._slots[name]
        if slot.initial is None:
            return self.engine.zeros(self._shape(slot.shape), slot.dtype)
        # A slot owns its buffer, which later calls overwrite: request and table values are copied.
        if slot.initial.source == "request":
            name = slot.initial.name
            return self.engine.upload(self.request[name], self.request_dtypes[name])
        if slot.initial.source == "table":
            table = self.tables[slot.initial.name]
            return self.engine.upload(table[0], str(table.dtype))
        return self._draw(slot.initial, 0)

    def _value(self, binding: Binding, step: int) -> Handle:
        """A table row, noise, or a request field, which is uploaded once."""
        if binding.source == "table":
            return self._row(binding, step)
        if binding.source == "noise":
            return self._draw(binding, step)
        if binding.name not in self._request:
            self._request[binding.name] = self.engine.upload(
                self.request[binding.name], self.request_dtypes[binding.name]
            )
        return self._request[binding.name]

    def _row(self, binding: Binding, step: int) -> Handle:
        key = (binding.name, step, binding.steps)
        if key not in self.rows:
            table = self.tables[binding.name]
            self.rows[key] = self.engine.upload(_rows(table, binding, step), str(table.dtype))
        return self.rows[key]

    def _draw(self, binding: Binding, step: int) -> Handle:
        noise = self._noise[binding.name]
        if noise.name in self.request:
            given = self.request[noise.name]
            if noise.steps is not None:
                given = _rows(given, binding, step)
            elif binding.steps is not None:
                given = np.stack([given] * binding.steps)
            return self.engine.upload(given, noise.dtype)
        shape = self._shape(noise.shape)
        draws = [
            philox.batch(self.seed, noise.name, each, shape, noise.distribution) * noise.scale
            for each in range(step, step + (binding.steps or 1))
        ]
        return self.engine.upload(
            draws[0] if binding.steps is None else np.stack(draws), noise.dtype
        )

    def _execute(self, item: Call | Repeat, step: int) -> Iterator[None]:
        if isinstance(item, Call):
            if self._call(item, step):
                yield
            return
        for index, body in enumerate(item.steps):
            for inner in item.bodies[body]:
                yield from self._execute(inner, index * item.stride)
            self._report()
            if item.until is not None and bool(
                np.all(self.engine.download(self._state[item.until]))
            ):
                break

    def _report(self) -> None:
        self._done += 1
        if self.progress is not None:
            self.progress(self._done, self._total)

    def _route(self, call: Call) -> "_Route":
        route = self._routes.get(id(call))
        if route is None:
            route = self._routes[id(call)] = _Route.of(call, self._slots)
        return route

    def _call(self, call: Call, step: int) -> bool:
        """Makes one engine call; says whether it appended something."""
        route = self._route(call)
        state, spare = self._state, self._spare
        inputs = self.inputs(call, step)
        buffers = {name: spare.pop(slot, None) for name, slot in route.to_state}
        for name, slot in route.in_place:
            buffers[name] = state[slot]
        for name in route.to_result:
            buffers[name] = route.copied.get(name)
        outputs = self.engine.run(call.graph, inputs, buffers)
        for name, slot in (*route.to_state, *route.in_place):
            value, old = outputs[name], state[slot]
            if old is not value:
                spare[slot] = old
                state[slot] = value
        for name, to in route.to_result.items():
            route.copied[name] = outputs[name]
            counts = None if to.counts is None else self.engine.download(outputs[to.counts])
            part = Part(self.engine.download(outputs[name]), counts, to.fill)
            self.appended.setdefault(to.append or name, []).append(part)
        return bool(route.to_result)


def _rows(array: NDArray[Any], binding: Binding, step: int) -> NDArray[Any]:
    """The row of a step, or the rows of as many steps as the binding takes."""
    return array[step] if binding.steps is None else array[step : step + binding.steps]


@dataclass(frozen=True)
class _Route:
    """A call's bindings sorted by kind, worked out once; a decoding loop makes thousands of calls.

    Pairs of an input or output of the graph and a slot, binding or result. `copied` are the last
    outputs that went to results: their copies are on the host, so the next ones may take their
    place.
    """

    from_state: tuple[tuple[str, str], ...]
    from_elsewhere: tuple[tuple[str, Binding], ...]
    to_state: tuple[tuple[str, str], ...]
    in_place: tuple[tuple[str, str], ...]
    to_result: dict[str, Destination]
    copied: dict[str, Handle] = field(default_factory=dict)

    @staticmethod
    def of(call: Call, slots: Mapping[str, Slot]) -> "_Route":
        inputs = call.inputs.items()
        written = [(n, d.state) for n, d in call.outputs.items() if d.state is not None]
        return _Route(
            from_state=tuple((n, b.name) for n, b in inputs if b.source == "state"),
            from_elsewhere=tuple((n, b) for n, b in inputs if b.source != "state"),
            to_state=tuple((n, s) for n, s in written if not slots[s].in_place),
            in_place=tuple((n, s) for n, s in written if slots[s].in_place),
            to_result={n: d for n, d in call.outputs.items() if d.append is not None},
        )
