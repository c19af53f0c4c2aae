"""Runs a `Loop` on any engine: the one driver for programs and bundles.

The driver moves handles between state slots and engine calls; it never looks inside them. Only the
flags of `Repeat.until`, appended results and the final results are copied to the host.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from optimize.runtime import philox
from optimize.runtime.loop import Binding, Call, Loop, Noise, Repeat, size_of

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


@dataclass
class Run:
    """One execution of a loop. Make a new one for each request."""

    loop: Loop
    tables: Mapping[str, NDArray[Any]]
    engine: Engine
    sizes: dict[str, int]
    request: Mapping[str, NDArray[Any]]
    request_dtypes: Mapping[str, str]
    seed: int
    progress: Progress | None = None
    appended: dict[str, list[NDArray[Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._noise = {noise.name: noise for noise in self.loop.noise}
        self._slots = {slot.name: slot for slot in self.loop.slots}
        self._request: dict[str, Handle] = {}
        self._rows: dict[str, list[Handle]] = {}
        # A buffer a slot no longer uses; the next call that writes the slot may write into it.
        self._spare: dict[str, Handle] = {}
        self._done = 0
        self._total = sum(len(item.steps) for item in self.loop.body if isinstance(item, Repeat))

    def execute(self) -> dict[str, NDArray[Any]]:
        """Runs the loop and returns the results on the host."""
        self._state = {name: self._initial(name) for name in self._slots}
        for item in self.loop.body:
            self._execute(item, 0)
        results = {name: np.stack(parts) for name, parts in self.appended.items()}
        for name, slot in self.loop.results.items():
            results[name] = self.engine.download(self._state[slot])
        return results

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
        return self._draw(self._noise[slot.initial.name], 0)

    def _value(self, binding: Binding, step: int) -> Handle:
        if binding.source == "state":
            return self._state[binding.name]
        if binding.source == "table":
            return self._row(binding.name, step)
        if binding.source == "noise":
            return self._draw(self._noise[binding.name], step)
        if binding.name not in self._request:
            self._request[binding.name] = self.engine.upload(
                self.request[binding.name], self.request_dtypes[binding.name]
            )
        return self._request[binding.name]

    def _row(self, name: str, step: int) -> Handle:
        if name not in self._rows:
            table = self.tables[name]
            self._rows[name] = [self.engine.upload(row, str(table.dtype)) for row in table]
        return self._rows[name][step]

    def _draw(self, noise: Noise, step: int) -> Handle:
        if noise.name in self.request:
            return self.engine.upload(self.request[noise.name], noise.dtype)
        numbers = philox.normal_batch(self.seed, noise.name, step, self._shape(noise.shape))
        return self.engine.upload(numbers * noise.scale, noise.dtype)

    def _execute(self, item: Call | Repeat, step: int) -> None:
        if isinstance(item, Call):
            self._call(item, step)
            return
        for inner_step, body in enumerate(item.steps):
            for inner in item.bodies[body]:
                self._execute(inner, inner_step)
            self._report()
            if item.until is not None and bool(
                np.all(self.engine.download(self._state[item.until]))
            ):
                break

    def _report(self) -> None:
        self._done += 1
        if self.progress is not None:
            self.progress(self._done, self._total)

    def _call(self, call: Call, step: int) -> None:
        inputs = {name: self._value(binding, step) for name, binding in call.inputs.items()}
        outputs = self.engine.run(call.graph, inputs, self._buffers(call))
        for name, destination in call.outputs.items():
            value = outputs[name]
            if destination.append is not None:
                self.appended.setdefault(destination.append, []).append(
                    self.engine.download(value)
                )
            elif destination.state is not None:
                old = self._state[destination.state]
                if old is not value:
                    self._spare[destination.state] = old
                self._state[destination.state] = value

    def _buffers(self, call: Call) -> dict[str, Handle | None]:
        """Output name → a buffer the engine may write it into, if there is one to spare."""
        buffers: dict[str, Handle | None] = {}
        for name, destination in call.outputs.items():
            slot = destination.state
            if slot is None:
                buffers[name] = None
            elif self._slots[slot].in_place:
                buffers[name] = self._state[slot]
            else:
                buffers[name] = self._spare.pop(slot, None)
        return buffers
