"""One graph of an unmask loop while it is built: its inputs, the model, the rules of filling in.

Where chance alone says which masks are filled in, the places are known before the model runs, and
the rows of all others need no logits: what follows the last attention then runs on the chosen rows.
"""

from typing import Any

import torch
from torch import fx

from optimize.ir import unmask_rules as rules
from optimize.ir.builder import Builder, builder_with_inputs, fake_mode_of
from optimize.ir.chosen_rows import with_rows_only
from optimize.ir.graph import Graph
from optimize.ir.recording import record
from optimize.ir.row_rewrite import GATHER
from optimize.ir.token_axis import CannotSubset
from optimize.ir.unmask import Commit, Unmasking

Nodes = dict[str, fx.Node]


class UnmaskStep:
    """A graph that is being built, its inputs made as they are asked for."""

    def __init__(self, denoiser: Graph, unmasking: Unmasking, prompt: bool = True) -> None:
        self.denoiser, self.unmasking, self.loop = denoiser, unmasking, unmasking.loop
        self.batch, rows = denoiser.node("input_ids").meta["val"].shape
        self.builder = Builder(fake_mode_of(denoiser))
        self.outputs: Nodes = {}
        self.dimensions = {"batch": denoiser.dimensions["batch"]}
        self._inputs: Nodes = {}
        self.text = self.input("text", (self.batch, self.loop.length), torch.int64)
        self.before: fx.Node | None = None
        self.sequence = self.text
        if prompt and self.loop.max_prompt:
            self.before = self.input("input_ids", (self.batch, rows), torch.int64)
            self.dimensions["prompt"] = denoiser.dimensions["rows"]
            self.sequence = record(
                self.builder, lambda a, b: torch.cat([a, b], 1), self.before, self.text
            )

    def input(self, name: str, shape: tuple[Any, ...], dtype: torch.dtype) -> fx.Node:
        """An input of the graph; the same one when asked for again."""
        if name not in self._inputs:
            self._inputs[name] = self.builder.input(name, self.builder.fake(shape, dtype))
        return self._inputs[name]

    def noise(self, name: str, shape: tuple[Any, ...]) -> fx.Node:
        """Uniform numbers, drawn anew for every call."""
        return self.input(name, shape, torch.float64)

    def sampling(self) -> tuple[fx.Node, ...]:
        """Temperature and top_p, where tokens are drawn."""
        sampling = self.loop.sampling
        if sampling is None:
            return ()
        names = ("temperature",) if sampling.top_p is None else ("temperature", "top_p")
        return tuple(self.input(name, (), torch.float32) for name in names)

    def uniforms(self) -> tuple[fx.Node, ...]:
        """A number for each token of the text, where tokens are drawn."""
        if self.loop.sampling is None:
            return ()
        return (self.noise("uniforms", (self.batch, self.loop.length)),)

    def block(self) -> fx.Node:
        """[B, G] bool: the masks that this call may fill in."""
        number = self.input("block", (), torch.int64)
        mask_id, width = self.loop.mask, self.loop.block
        found: fx.Node = record(
            self.builder, lambda t, b: rules.of_block(t, mask_id, b, width), self.text, number
        )
        return found

    def time(self, tau: fx.Node | None = None) -> fx.Node | None:
        """[B] float32, what the model takes for the time; None where it does not look at it."""
        if not self.unmasking.timed:
            return None
        sigma = self.loop.time == "sigma"

        def time(share: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            masked = torch.clamp(share.double().expand(text.shape[0]), min=1e-4, max=1 - 1e-4)
            return (-torch.log1p(-masked) if sigma else masked).float()

        share = self.input("masked_share", (), torch.float64) if tau is None else tau
        made: fx.Node = record(self.builder, time, share, self.text)
        return made

    def logits(self, tau: fx.Node | None = None) -> fx.Node:
        """Of all tokens of the text, [B, G, V]."""
        made = self.builder.inline(self.denoiser, self._arguments(tau), evaluate=True)
        length, shifted, prompted = self.loop.length, self.loop.shifted, self.before is not None

        def rows(logits: torch.Tensor) -> torch.Tensor:
            whole = logits.shape[1]
            if not shifted:
                return logits[:, whole - length :]
            if prompted:
                return logits[:, whole - length - 1 : whole - 1]
            return torch.cat([logits[:, :1], logits[:, :-1]], 1)

        return self._of_text(record(self.builder, rows, made["logits"]))

    def fill_whole(self) -> None:
        """Logits of the whole text; coins or how sure the model is say which masks to fill in."""
        block, kind = self.block(), self.loop.remasking
        logits = self.logits()
        tokens = self._drawn(logits, self.uniforms())
        if self.loop.order_is_blind:
            which = self._by_chance(block)
        else:
            score = record(self.builder, lambda z, t: rules.certainty(kind, z, t), logits, tokens)
            which = self._by_score(block, score)
        if self.unmasking.commit is not None:
            which = self._with_rest(which, logits, self.unmasking.commit)
        self._fill(which, tokens)

    def fill_places(self) -> None:
        """Masks drawn at random, with the logits of the whole text."""
        places, counts, tau, times = self._places()
        logits = self.logits(tau)
        chosen = self.builder.call(GATHER, logits, places, 1)
        hitting = self.unmasking.first_hitting
        if hitting is not None and hitting.extrapolate and times is not None:
            chosen = self._carried_on(logits, chosen, places, tau, times)
        self._put_drawn(chosen, places, counts)

    def fill_chosen_rows(self) -> None:
        """Masks drawn at random; what follows the last attention runs on their rows only."""
        places, counts, tau, _ = self._places()
        length, shift = self.loop.length, int(self.loop.shifted)

        def rows(places: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
            first = sequence.shape[1] - length - shift
            return torch.clamp(places + first, min=0)

        index = record(self.builder, rows, places, self.sequence)
        few = rows_of(self.denoiser, max(self.unmasking.groups))
        arguments = {**self._arguments(tau), "wanted_rows": index}
        made = self.builder.inline(few, arguments, evaluate=True)
        self._put_drawn(self._of_text(made["logits"]), places, counts)

    def fill_from(self, tokens: fx.Node) -> None:
        """Tokens of a whole text; chance says at which masks they are taken."""
        if self.unmasking.first_hitting is None:
            self._fill(self._by_chance(self.block()), tokens)
            return
        places, counts, *_ = self._places()
        self._put(self._at(tokens, places), places, counts)

    def finished(self) -> Graph:
        """The graph, with what every call says of the text."""
        mask_id, width = self.loop.mask, self.loop.block
        text = self.outputs["text"]
        calls = self.input("calls", (self.batch,), torch.int64)

        def state(
            before: torch.Tensor, after: torch.Tensor, calls: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            ran = (before == mask_id).any(-1)
            return ~(after == mask_id).any(-1), calls + ran.long()

        self.outputs["finished"], self.outputs["calls"] = record(
            self.builder, state, self.text, text, calls
        )
        if self.loop.blocks > 1:
            sent = self.input("sent", (self.batch,), torch.int64)
            parts = record(
                self.builder, lambda t, s: rules.fragment(t, mask_id, width, s), text, sent
            )
            names = ("tokens", "emitted", "sent")
            self.outputs |= dict(zip(names, parts, strict=True))
        return self.builder.finish(self.outputs, self.dimensions)

    def _arguments(self, tau: fx.Node | None) -> Nodes:
        time = self.time(tau)
        return {"input_ids": self.sequence, **({} if time is None else {"timestep": time})}

    def _of_text(self, logits: fx.Node) -> fx.Node:
        mask_id, vocabulary = self.loop.mask, self.unmasking.vocabulary
        made: fx.Node = record(
            self.builder, lambda z: rules.text_logits(z, mask_id, vocabulary), logits
        )
        return made

    def _drawn(self, logits: fx.Node, uniforms: tuple[fx.Node, ...]) -> fx.Node:
        sampling = self.loop.sampling

        def draw(logits: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
            return rules.drawn(logits, sampling, *given)

        made: fx.Node = record(self.builder, draw, logits, *uniforms, *self.sampling())
        return made

    def _at(self, row: fx.Node, places: fx.Node) -> fx.Node:
        """[B, g]: what a row [B, G] has at places."""
        found: fx.Node = record(self.builder, lambda r, p: r.gather(1, p), row, places)
        return found

    def _put_drawn(self, logits: fx.Node, places: fx.Node, counts: fx.Node) -> None:
        """Draws tokens from logits [B, g, V] and puts them at their places."""
        uniforms = tuple(self._at(item, places) for item in self.uniforms())
        self._put(self._drawn(logits, uniforms), places, counts)

    def _put(self, tokens: fx.Node, places: fx.Node, counts: fx.Node) -> None:
        self.outputs["text"] = record(self.builder, rules.put, self.text, places, tokens, counts)

    def _fill(self, which: fx.Node, tokens: fx.Node) -> None:
        self.outputs["text"] = record(self.builder, torch.where, which, tokens, self.text)

    def _by_chance(self, block: fx.Node) -> fx.Node:
        """[B, G] bool: by a coin for each mask, or by the largest of random keys."""
        keys = self.noise("keys", (self.batch, self.loop.length))
        if self.loop.remasking == "random":
            return self._by_score(block, keys)
        chance = self.input("reveal", (), torch.float64)
        made: fx.Node = record(self.builder, lambda m, u, p: m & (u < p), block, keys, chance)
        return made

    def _by_score(self, block: fx.Node, score: fx.Node) -> fx.Node:
        """[B, G] bool: the masks of the largest scores, a call's share of their block."""
        calls = self.unmasking.calls_per_block
        place = self.input("place", (), torch.int64)
        masks = self.input("block_masks", (self.batch,), torch.int64)

        def which(
            block: torch.Tensor, score: torch.Tensor, place: torch.Tensor, masks: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            masks = torch.where(place == 0, block.long().sum(-1), masks)
            count = rules.share_of_masks(masks, place, calls)
            return rules.largest(score, block, count), masks

        chosen, counted = record(self.builder, which, block, score, place, masks)
        self.outputs["block_masks"] = counted
        found: fx.Node = chosen
        return found

    def _with_rest(self, which: fx.Node, logits: fx.Node, commit: Commit) -> fx.Node:
        """[B, G] bool: these masks, and all that are left where the answer is certain."""
        mask_id, threshold = self.loop.mask, self.input("threshold", (), torch.float32)
        first, count = commit.region or (0, self.loop.length)
        masked_only = commit.masked_only or commit.region is None

        def with_rest(
            which: torch.Tensor, logits: torch.Tensor, text: torch.Tensor, least: torch.Tensor
        ) -> torch.Tensor:
            masked = text == mask_id
            numbers = torch.arange(text.shape[1], device=text.device)
            region = (numbers >= first) & (numbers < first + count)
            sure = rules.is_certain(logits, masked, region, least, masked_only)
            return which | (masked & sure[:, None])

        made: fx.Node = record(self.builder, with_rest, which, logits, self.text, threshold)
        return made

    def _places(self) -> tuple[fx.Node, fx.Node, fx.Node | None, fx.Node | None]:
        """Places, which of them count, the time of the call, and the times of the reveals."""
        block, most = self.block(), max(self.unmasking.groups)
        keys = self.noise("keys", (self.batch, self.loop.length))
        count = self.input("count", (), torch.int64)
        places, counts = record(
            self.builder, lambda m, u, c: rules.random_places(m, u, c, most), block, keys, count
        )
        hitting = self.unmasking.first_hitting
        carried_on = hitting is not None and hitting.extrapolate
        if not (self.unmasking.timed or carried_on):
            return places, counts, None, None
        uniforms = self.noise("time_uniforms", (self.batch, most))
        tau = self.input("tau", (self.batch,), torch.float64)
        place = self.input("place", (), torch.int64)

        def times(
            tau: torch.Tensor,
            place: torch.Tensor,
            block: torch.Tensor,
            uniforms: torch.Tensor,
            counts: torch.Tensor,
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            # The time starts anew with every block.
            begin = torch.where(place == 0, 1.0, tau)
            found = rules.hitting_times(begin, block.long().sum(-1), uniforms, counts)
            return found[:, 0], found, found[:, -1]

        first, all_times, last = record(self.builder, times, tau, place, block, uniforms, counts)
        self.outputs["tau"] = last
        return places, counts, first, all_times

    def _carried_on(
        self,
        logits: fx.Node,
        chosen: fx.Node,
        places: fx.Node,
        tau: fx.Node | None,
        times: fx.Node,
    ) -> fx.Node:
        value = logits.meta["val"]
        previous = self.input("previous", tuple(value.shape), value.dtype)
        before = self.input("previous_tau", (self.batch,), torch.float64)
        place = self.input("place", (), torch.int64)
        old = self.builder.call(GATHER, previous, places, 1)

        def carry(
            chosen: torch.Tensor,
            old: torch.Tensor,
            times: torch.Tensor,
            tau: torch.Tensor,
            before: torch.Tensor,
            place: torch.Tensor,
        ) -> torch.Tensor:
            # The first call of a block has none before it.
            before = torch.where(place == 0, tau, before)
            return rules.extrapolated(chosen, old, times, tau, before)

        made: fx.Node = record(self.builder, carry, chosen, old, times, tau, before, place)
        self.outputs["previous"] = record(self.builder, torch.clone, logits)
        self.outputs["previous_tau"] = record(self.builder, torch.clone, tau)
        return made


def rows_of(denoiser: Graph, count: int) -> Graph:
    """The denoiser with logits of `count` rows of each sample, its further input `wanted_rows`.

    What follows the last attention runs on these rows only; if an op there needs all rows, only
    the logits are taken.
    """
    builder, arguments = builder_with_inputs(denoiser)
    batch = denoiser.node("input_ids").meta["val"].shape[0]
    index = builder.input("wanted_rows", builder.fake((batch, count), torch.int64))
    made = builder.inline(denoiser, arguments)
    logits = builder.call(GATHER, made["logits"], index, 1)
    graph = builder.finish({"logits": logits}, denoiser.dimensions)
    try:
        return with_rows_only(graph, count)
    except CannotSubset:
        return graph
