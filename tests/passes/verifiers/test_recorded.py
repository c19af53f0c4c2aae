"""Verifiers as graphs: recorded once, they do for any batch what the plain functions do."""

import pytest
import torch

from optimize.ir.distribution import distribution, draws, draws_without_replacement
from optimize.ir.draft_tree import CHIMERA_TREE, DraftTree
from optimize.passes.verifiers.block import Block
from optimize.passes.verifiers.greedy import Greedy
from optimize.passes.verifiers.judge import Judge
from optimize.passes.verifiers.kseq import Exact, KSeq
from optimize.passes.verifiers.recursive import Recursive
from tests.passes.verifiers.recorded import recorded

VOCABULARY = 5
TREE = DraftTree.ranked([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])
CASES = {
    "exact": (Exact(), DraftTree.chain(3)),
    "kseq": (KSeq(), DraftTree.independent(3, 2)),
    "greedy": (Greedy(), CHIMERA_TREE),
    "block": (Block(), DraftTree.chain(3)),
    "recursive": (Recursive(), TREE),
    "recursive without replacement": (Recursive(without_replacement=True), TREE),
    "judge": (Judge(stop_tokens=(0,)), DraftTree.chain(3)),
    "greedy judge": (Judge(sampled=False), DraftTree.chain(3)),
}


def _case(tree, batch, seed):
    generator = torch.Generator().manual_seed(seed)

    def uniforms(*shape):
        return torch.rand(batch, *shape, generator=generator, dtype=torch.float64)

    p, q = (torch.softmax(2 * uniforms(VOCABULARY, VOCABULARY), -1) for _ in range(2))
    return {
        "tokens": (uniforms(tree.size) * VOCABULARY).long(),
        "p": p,
        "q": q,
        "uniforms": uniforms(tree.size),
        "scores": uniforms(tree.size) * 8 - 4,
    }


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_verifier_equals_the_function_for_any_batch(name):
    verifier, tree = CASES[name]

    def verify(tokens, p, q, uniforms, scores):
        def rows(table):
            def of(row):
                token = tokens.gather(1, row[:, None])
                return table.gather(1, token[:, :, None].expand(-1, -1, VOCABULARY))[:, 0]

            return of

        return verifier.verify(tree, tokens, rows(q), rows(p), uniforms, scores)

    by_torch, by_onnx_runtime = recorded(verify, _case(tree, 3, 0), ("path", "accepted", "token"))
    lengths = set()
    for seed, batch in enumerate((1, 3, 64)):
        case = _case(tree, batch, seed)
        expected = verify(**case)
        lengths |= set(expected.accepted.tolist())
        for found in (by_torch(case), by_onnx_runtime(case)):
            for left, right in zip(found, expected, strict=True):
                assert left.dtype == torch.int64
                assert left.tolist() == right.tolist()
    assert len(lengths) > 1, "the batch is not ragged"


@pytest.mark.parametrize("top_k", [None, 3])
def test_recorded_distributions_and_draws_equal_the_functions(top_k):
    def drawn(logits, temperature, top_p, uniforms):
        probabilities = distribution(logits, temperature, top_p, top_k)
        first = draws(probabilities, uniforms)
        return probabilities, first, draws_without_replacement(probabilities, uniforms)

    def case(batch, seed):
        generator = torch.Generator().manual_seed(seed)
        return {
            "logits": torch.randn(batch, 7, generator=generator),
            "temperature": torch.rand(batch, generator=generator) + 0.5,
            "top_p": torch.rand(batch, generator=generator) * 0.9 + 0.1,
            "uniforms": torch.rand(batch, 3, generator=generator, dtype=torch.float64),
        }

    outputs = ("probabilities", "with_replacement", "without_replacement")
    runs = recorded(drawn, case(3, 0), outputs)
    for seed, batch in enumerate((1, 3, 64)):
        expected = drawn(**case(batch, seed))
        for run in runs:
            found = run(case(batch, seed))
            torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-14)
            assert found[1].tolist() == expected[1].tolist()
            assert found[2].tolist() == expected[2].tolist()
