"""Verification written once more, in plain Python, with every random number integrated exactly.

A round is a function of uniforms that is constant between thresholds. The references here follow
the papers draft by draft and branch on both sides of every threshold, so a list of branches with
their probabilities stands for all uniforms. `Outcome` runs the verifier under test on all of them.
"""

import itertools
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq

MARGIN = 1e-7
"""How near to a threshold both its sides are tried, as a share of the side's length."""


@dataclass(frozen=True)
class Branch:
    """Probability, uniforms by column, accepted rows and the token that follows."""

    weight: float
    uniforms: dict
    rows: tuple
    token: int


def tables(vocabulary, seed, sharpness=1.5):
    """Random Markov tables [V, V] of draft and target."""
    random = np.random.default_rng(seed)
    scores = random.normal(size=(2, vocabulary, vocabulary)) * sharpness
    raised = np.exp(scores)
    return tuple(raised / raised.sum(-1, keepdims=True))


def constant(probabilities):
    """The table of a distribution that does not depend on the token before."""
    return np.tile(np.asarray(probabilities, dtype=float), (len(probabilities), 1))


def all_drafts(tree, p, without_replacement=False):
    """(tokens by row, probability), of all tokens that can be drafted behind token 0."""
    vocabulary = len(p)
    for drafted in itertools.product(range(vocabulary), repeat=tree.size - 1):
        tokens = (0, *drafted)
        weight = 1.0
        for row, children in enumerate(tree.children):
            own = p[tokens[row]].copy()
            for child in children:
                weight *= own[tokens[child]]
                if without_replacement and weight:
                    own = _without(own, tokens[child])
        if weight:
            yield tokens, weight


def _sides(bound):
    """(whether accepted, probability, uniform) on the sides of a threshold that can occur.

    Where only one side can occur, the uniform is the one nearest to the other.
    """
    if bound == 0:
        yield False, 1.0, 0.0
    elif bound > 1 + MARGIN:
        yield True, 1.0, 1 - 2**-53
    else:
        bound = min(1.0, bound)
        yield True, bound, bound * (1 - MARGIN)
        if bound < 1:
            yield False, 1 - bound, bound + (1 - bound) * MARGIN


def _draws(tree, probabilities):
    """(token, probability, uniform) of the last draw."""
    ends = np.cumsum(probabilities)
    for token, share in enumerate(probabilities):
        if share > 1e-13:
            yield token, share, ends[token] - share / 2


def _without(probabilities, token):
    rest = probabilities.copy()
    rest[token] = 0
    return rest / rest.sum() if rest.any() else rest


def _scaled(weights):
    return np.maximum(weights, 0) / np.maximum(weights, 0).sum()


def rho_of(p, q, count):
    """The root that defines rho."""

    def difference(rho):
        beta = np.minimum(p, q / rho).sum()
        return rho * beta - (1 - (1 - beta) ** count)

    if count == 1 or difference(1.0) >= 0:
        return 1.0
    return brentq(difference, 1.0, count, xtol=1e-15, rtol=1e-15)


def independent(tree, tokens, p, q, rho=rho_of, last=_draws):
    """SpecTr, algorithm 3, with algorithm 2 at each level."""
    drafts, length = tree.drafts, tree.depth

    def walk(level, live, rows, weight, uniforms):
        before = tokens[rows[-1]] if rows else tokens[0]
        if level == length:
            yield from ends(q[before], rows, weight, uniforms)
            return
        own = rho(p[before], q[before], len(live))
        yield from attempt(level, live, live, rows, weight, uniforms, before, own)

    def attempt(level, live, untried, rows, weight, uniforms, before, own):
        if not untried:
            yield from ends(_scaled(q[before] - own * p[before]), rows, weight, uniforms)
            return
        row = 1 + level * drafts + untried[0]
        token = tokens[row]
        for kept, share, uniform in _sides(q[before][token] / (own * p[before][token])):
            changed = weight * share, uniforms | {row - 1: uniform}
            if kept:
                same = [k for k in live if tokens[1 + level * drafts + k] == token]
                # The last survivor's own rows are checked by the caller, by their tokens.
                yield from walk(level + 1, same, (*rows, row), *changed)
            else:
                yield from attempt(level, live, untried[1:], rows, *changed, before, own)

    def ends(probabilities, rows, weight, uniforms):
        for token, share, uniform in last(tree, probabilities):
            yield Branch(weight * share, uniforms | {tree.size - 1: uniform}, rows, token)

    yield from walk(0, list(range(drafts)), (), 1.0, {})


def block(tree, tokens, p, q):
    """Block verification: the largest i with u_i <= h_i."""
    length = tree.depth
    joint = [1.0]
    for row in range(1, length + 1):
        ratio = q[tokens[row - 1]][tokens[row]] / p[tokens[row - 1]][tokens[row]]
        joint.append(min(1.0, joint[-1] * ratio))

    def bound(row):
        if row == length:
            return joint[row]
        surplus = np.maximum(joint[row] * q[tokens[row]] - p[tokens[row]], 0).sum()
        rest = surplus + 1 - joint[row]
        return surplus / rest if rest else 0.0

    def walk(row, weight, uniforms):
        if row == 0:
            yield from ends(0, weight, uniforms)
            return
        for kept, share, uniform in _sides(bound(row)):
            changed = weight * share, uniforms | {row - 1: uniform}
            yield from ends(row, *changed) if kept else walk(row - 1, *changed)

    def ends(end, weight, uniforms):
        after = q[tokens[end]]
        if end < length:
            after = _scaled(joint[end] * after - p[tokens[end]])
        for token, share, uniform in _draws(tree, after):
            rows = tuple(range(1, end + 1))
            yield Branch(weight * share, uniforms | {length: uniform}, rows, token)

    yield from walk(length, 1.0, {})


def recursive(tree, tokens, p, q, without_replacement=False):
    """SpecInfer's rule over the children of each row."""

    def walk(at, rows, weight, uniforms):
        yield from attempt(tree.children[at], p[tokens[at]], q[tokens[at]], rows, weight, uniforms)

    def attempt(untried, own, left, rows, weight, uniforms):
        if not untried:
            for token, share, uniform in _draws(tree, left):
                yield Branch(weight * share, uniforms | {tree.size - 1: uniform}, rows, token)
            return
        row, *others = untried
        for kept, share, uniform in _sides(left[tokens[row]] / own[tokens[row]]):
            changed = weight * share, uniforms | {row - 1: uniform}
            if kept:
                yield from walk(row, (*rows, row), *changed)
                continue
            rest = own
            if without_replacement:
                rest = _without(own, tokens[row])
            yield from attempt(others, rest, _scaled(left - own), rows, *changed)

    yield from walk(0, (), 1.0, {})


class Outcome:
    """What a verifier does over all drafts and all uniforms.

    Args:
        drafts: (tokens, probability), see `all_drafts`.
        branches: (tree, tokens, p, q) → branches, one of the references.
    """

    def __init__(self, verifier, tree, p, q, drafts, branches, **given):
        self.tree, self.q = tree, q
        found = [
            (tokens, weight, branch)
            for tokens, weight in drafts
            for branch in branches(tree, tokens, p, q)
        ]
        tokens = torch.tensor([tokens for tokens, _, _ in found])
        # Uniforms that must not matter are random ones.
        uniforms = np.random.default_rng(0).random((len(found), tree.size))
        for row, (_, _, branch) in enumerate(found):
            for column, uniform in branch.uniforms.items():
                uniforms[row, column] = uniform

        def rows_of(table):
            return lambda rows: torch.from_numpy(table)[tokens.gather(1, rows[:, None])[:, 0]]

        self.verdict = verifier.verify(
            tree, tokens, rows_of(q), rows_of(p), torch.from_numpy(uniforms), **given
        )
        self.tokens = tokens
        self.weights = np.array([weight * branch.weight for _, weight, branch in found])
        self.expected = [
            (*(drafted[row] for row in branch.rows), branch.token) for drafted, _, branch in found
        ]
        ends = self.verdict.accepted.tolist()
        drafted = tokens.gather(1, self.verdict.path).tolist()
        last = self.verdict.token.tolist()
        self.emitted = [
            (*row[:end], token) for row, end, token in zip(drafted, ends, last, strict=True)
        ]

    @property
    def accepted(self):
        """Accepted tokens of a round on average."""
        return float(self.weights @ self.verdict.accepted.numpy())

    def law(self):
        """Of the next depth + 1 tokens, drawn from the target where the round gave fewer."""
        length = self.tree.depth + 1
        by_length = [defaultdict(float) for _ in range(length + 1)]
        for emitted, weight in zip(self.emitted, self.weights, strict=True):
            by_length[len(emitted)][emitted] += weight
        for shorter, longer in itertools.pairwise(by_length):
            for text, weight in shorter.items():
                for token, share in enumerate(self.q[text[-1]] if text else ()):
                    longer[(*text, token)] += weight * share
        return by_length[length]

    def error(self):
        """Largest difference of a probability from the target's."""
        return max(map(abs, self._differences()))

    def total_variation(self):
        return sum(map(abs, self._differences())) / 2

    def _differences(self):
        law = self.law()
        length, vocabulary = self.tree.depth + 1, len(self.q)
        for text in itertools.product(range(vocabulary), repeat=length):
            steps = zip((0, *text), text, strict=False)
            yield law[text] - np.prod([self.q[before][token] for before, token in steps])

    def check_paths(self):
        """Accepted rows lead down the tree from the root."""
        for path, end in zip(
            self.verdict.path.tolist(), self.verdict.accepted.tolist(), strict=True
        ):
            steps = zip([0, *path], path[:end], strict=False)
            assert all(self.tree.parents[row - 1] == parent for parent, row in steps)
            assert all(0 <= row < self.tree.size for row in path)
