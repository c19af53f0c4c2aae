"""Attaches a draft and a verifier to the decoding loop of a causal language model.

    Repeat(decode: token ─▶ token)      ───▶      Repeat(draft: run ─▶ drafted;
                                                         verify: token, drafted ─▶ run, emitted)

A draft proposes a tree of tokens, the target reads all of them in one call, and the verifier keeps
those of one path; each call of the target so emits between one token and the depth of the tree and
one more. Lossless verifiers keep the target's distribution: greedily its very tokens. Rejected rows
stay in the cache behind the length of their sample and are written over. Every sample of a batch
goes on at its own pace.

Changes: the graphs "draft", "verify" and, for trees, "settle" instead of "decode"; the caches get
    room for a tree; the result "accepted" [batch, rounds] says how many drafted tokens each round
    kept, -1 behind the end of a sample.
Declines when: the program does not generate tokens or has a draft already; the draft reads what the
    program does not have, such as the hidden states of image tokens.
Numerics: the tokens of the target, or its distribution, up to rounding; the verifier "judge" is
    lossy and asks for `lossy`.
Source: Leviathan et al. (2023) and Chen et al. (2023), one draft; Sun et al. (2023), SpecTr; Miao
    et al. (2024), trees; Sun et al. (2025), blocks; Zeng et al. (2024), Chimera; Bachmann et al.
    (2025), judges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, get_args

from optimize.capture.decode_loop import decode_program
from optimize.ir.draft_tree import CHIMERA_TREE, DraftTree
from optimize.ir.exporting import Target
from optimize.ir.program import Program
from optimize.passes.choices import Choice, OneOf, WholeNumber
from optimize.passes.draft_check import draft_oracles, drawn_oracles
from optimize.passes.draft_figures import draft_figures
from optimize.passes.draft_length import fitted_length
from optimize.passes.drafts.catalog import DraftKind, draft_of, file_of
from optimize.passes.drafts.chimera import target_fingerprint
from optimize.passes.drafts.chimera_draft import target_tables
from optimize.passes.drafts.draft_base import Draft, DraftGraphs, Round
from optimize.passes.drafts.judge_head import JudgeHead, load_judge
from optimize.passes.pass_base import Declined, Fitted, Numerics, OracleResult, Pass, Rewritten
from optimize.passes.verifiers.catalog import verifier
from optimize.passes.verifiers.verifier_base import Verifier
from optimize.passes.verify_graph import JudgeWeights, settle_graph, verify_graph, with_rounds

VerifierName = Literal["greedy", "exact", "block", "kseq", "recursive", "judge"]

MOST_ROWS = 256
"""Most rows of a tree: a call of the target with more is no longer cheap on any device."""


@dataclass(frozen=True)
class AttachDraft(Pass):
    """Options.

    Args:
        draft: "model", a smaller model of the same vocabulary; "chimera", a trained head on the
            target's hidden states; "layers", the target without its middle layers; "lookup", what
            followed the last tokens earlier in the text.
        source: of "model" its folder or hub id, of "chimera" its file; or a name of the zoo.
        draft_length: tokens of a draft, at least 1; None lets calibration choose it.
        num_drafts: drafts side by side, at least 1. More than one are drawn independently.
        tree: "chimera" for its published tree, or the paths of ranks of another, such as
            ["0", "1", "00"]; None for chains.
        verifier: None for "greedy" without sampling, and with it "exact" for one draft, "kseq" for
            several, "recursive" for trees.
        layers: of "layers", how many of the target's, in [1, layers); None for a quarter.
        ngram: of "lookup", most tokens that have to agree, in [1, 8].
        judge: file of a judge's head, for verifier "judge", or a name of the zoo.
        lossy: consent to a verifier that may change the text.
    """

    draft: DraftKind = "lookup"
    source: str | None = None
    draft_length: int | None = None
    num_drafts: int = 1
    tree: str | tuple[str, ...] | None = None
    verifier: VerifierName | None = None
    layers: int | None = None
    ngram: int = 3
    judge: str | None = None
    lossy: bool = False

    numerics: ClassVar[Numerics] = "rounding"

    def __post_init__(self) -> None:
        if self.draft not in get_args(DraftKind):
            raise ValueError(f"draft: found {self.draft!r}, expected one of {get_args(DraftKind)}")
        if self.verifier is not None and self.verifier not in get_args(VerifierName):
            raise ValueError(
                f"verifier: found {self.verifier!r}, expected one of {get_args(VerifierName)}"
            )
        if (self.source is not None) != (self.draft in ("model", "chimera")):
            raise ValueError(
                f"source: found {self.source!r} for draft {self.draft!r}, expected one for 'model' "
                "(a folder or hub id) and 'chimera' (a file), and none for the others"
            )
        for name, least, most in (
            ("draft_length", 1, MOST_ROWS - 1),
            ("num_drafts", 1, MOST_ROWS - 1),
            ("layers", 1, 2**20),
            ("ngram", 1, 8),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name}: found {value}, expected one in [{least}, {most}]")
        if self.tree is not None and (self.num_drafts != 1 or self.draft_length is not None):
            raise ValueError("tree: found one beside draft_length or num_drafts, expected it alone")
        if self.draft == "lookup" and (self.num_drafts != 1 or self.tree is not None):
            raise ValueError(
                "draft 'lookup': found several drafts, expected one: a text has one continuation"
            )
        if self.layers is not None and self.draft != "layers":
            raise ValueError(f"layers: found {self.layers} for draft {self.draft!r}")
        if (self.judge is not None) != (self.verifier == "judge"):
            raise ValueError(
                f"judge: found {self.judge!r} for verifier {self.verifier!r}, expected the file of "
                "a head for verifier 'judge' and none for the others"
            )
        if (self.verifier == "judge") != self.lossy:
            raise ValueError(
                "lossy: expected true for verifier 'judge', whose text may differ from the "
                "target's, and false for the others, which keep it"
            )
        if self.tree is not None:
            self._tree(1)
        if self._tree(self.draft_length or 1).size > MOST_ROWS:
            raise ValueError(f"draft: found a tree of more than {MOST_ROWS} rows; draft fewer")

    @classmethod
    def choices(cls, program: Program, target: Target) -> Mapping[str, Choice]:
        """Drafts that need no training and no other model."""
        kinds: tuple[DraftKind, ...] = ("lookup", "layers")
        fitting = [kind for kind in kinds if cls(draft=kind).declines(program) is None]
        return {
            "draft": OneOf(tuple(fitting)),
            "draft_length": OneOf((None, 1, 2, 3, 4, 6, 8)),
            "ngram": WholeNumber(1, 4),
        }

    def declines(self, program: Program) -> str | None:
        decoding = program.decoding
        if decoding is None or program.decoder is None:
            return "the program does not generate tokens"
        if "decode" not in program.graphs:
            return "a draft is attached already"
        longest = self._tree(self.draft_length or 1).depth
        if longest >= decoding.loop.max_new_tokens:
            return (
                f"found drafts of {longest} tokens, expected fewer than max_new_tokens "
                f"{decoding.loop.max_new_tokens}"
            )
        is_greedy = decoding.loop.sampling is None
        if self.verifier not in (None, "judge") and (self.verifier == "greedy") != is_greedy:
            how = "the likeliest tokens" if is_greedy else "drawn tokens"
            return f"found verifier {self.verifier!r} for {how}; leave it away"
        try:
            reason = self._draft(program).declines(program)
            return reason or self._verifier(program).accepts(self._tree(self.draft_length or 1))
        except Declined as error:
            return str(error)

    def fit(self, program: Program, requests: Sequence[Mapping[str, Any]]) -> Fitted:
        """Chooses the draft length from the acceptance rate on the calibration requests."""
        if self.draft_length is not None or self.tree is not None:
            return Fitted(self)
        length, details = fitted_length(
            program,
            requests,
            lambda length: replace(self, draft_length=length).rewrite(program).program,
        )
        if details["expected_gain"] <= 1:
            rates = ", ".join(f"{rate:.2f}" for rate in details["acceptance_rate"][:3])
            raise Declined(
                f"does not pay: of what draft {self.draft!r} proposes too little is kept "
                f"(acceptance rates {rates}); give a draft_length to attach it all the same"
            )
        return Fitted(replace(self, draft_length=length), details)

    def identity(self) -> Self:
        """One looked-up token, kept where it is the target's: greedily the very same text."""
        return replace(
            self,
            draft="lookup",
            source=None,
            draft_length=1,
            num_drafts=1,
            tree=None,
            verifier="greedy",
            layers=None,
            judge=None,
            lossy=False,
        )

    def rewrite(self, program: Program) -> Rewritten:
        decoding = program.decoding
        assert decoding is not None and program.decoder is not None
        tree = self._tree(self.draft_length or 1)
        judge = None if self.judge is None else load_judge_of(self.judge, program)
        plan = Round(
            tree=tree,
            verifier=self._verifier(program),
            sampling=decoding.loop.sampling,
            capacity=decoding.capacity - decoding.image_tokens + tree.size,
        )
        made = self._draft(program).graphs(program, plan)
        weights = None if judge is None else JudgeWeights(judge.weight, judge.bias)
        verify, tables = verify_graph(program, plan, made.reads_states, weights)
        graphs = self._graphs(program, plan, made)
        graphs["verify"] = verify
        if "path" in verify.outputs:
            graphs["settle"] = settle_graph(verify)
        all_weights = {**program.weights, **made.weights, **tables}
        loop = decode_program(graphs, all_weights, decoding, "round")
        after = replace(
            program,
            graphs=graphs,
            weights=all_weights,
            loop=loop.loop,
            signature=loop.signature,
        )
        lossy = plan.verifier.lossy
        details = {
            "draft": self.draft,
            "verifier": plan.verifier.name,
            "lossless": not lossy,
            "rows": tree.size,
            "depth": tree.depth,
            **made.details,
        }
        if lossy:
            note = "verifier judge is lossy: the text may differ from the target's"
            after = replace(after, notes=(*after.notes, note))
        return Rewritten(after, ("decode",), details)

    def oracles(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> list[OracleResult]:
        """Greedy texts are the target's own, up to ties; draws are as the draft says they are."""
        assert before.decoding is not None
        if before.decoding.loop.sampling is not None:
            return drawn_oracles(after, request)
        return [] if self.lossy else draft_oracles(before, after, request)

    def figures(
        self, before: Program, after: Program, request: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Tokens per call of the target, and how often each position of a draft is kept."""
        return {"draft": draft_figures(after, request, self._tree(self.draft_length or 1).depth)}

    def _graphs(self, program: Program, plan: Round, made: DraftGraphs) -> dict[str, Any]:
        assert program.decoding is not None
        pad = program.decoding.loop.pad_token or 0
        graphs = {name: graph for name, graph in program.graphs.items() if name != "decode"}
        graphs["prefill"] = with_rounds(made.prefill or graphs["prefill"], plan, pad)
        if made.before is not None:
            graphs["draft_prefill"] = made.before
        graphs["draft"] = made.draft
        return graphs

    def _draft(self, program: Program) -> Draft:
        return draft_of(self.draft, program, self.source, self.layers, self.ngram)

    def _tree(self, length: int) -> DraftTree:
        if self.tree == "chimera":
            return CHIMERA_TREE
        if self.tree is not None:
            paths = [self.tree] if isinstance(self.tree, str) else self.tree
            return DraftTree.ranked(tuple(map(int, path)) for path in paths)
        return DraftTree.independent(self.num_drafts, length)

    def _verifier(self, program: Program) -> Verifier:
        assert program.decoding is not None
        loop = program.decoding.loop
        sampled = loop.sampling is not None
        if self.judge is not None:
            head = load_judge_of(self.judge, program)
            stops = loop.stop_tokens or ()
            return verifier("judge", threshold=head.threshold, stop_tokens=stops, sampled=sampled)
        if not sampled:
            return verifier("greedy")
        usual = "exact" if self.num_drafts == 1 else "kseq"
        name = self.verifier or (usual if self.tree is None else "recursive")
        if name == "recursive":
            return verifier(name, without_replacement=self.tree is not None)
        return verifier(name)


def load_judge_of(source: str, program: Program) -> JudgeHead:
    """A judge's head that was trained for the target of a program.

    Raises:
        Declined: the file is no head, or one of another target.
    """
    assert program.decoder is not None and program.decoding is not None
    tables = target_tables(program.decoder)
    if tables is None:
        raise Declined("found no embedding table and output matrix to know the judge's target by")
    weights = program.weights
    fingerprint = target_fingerprint(weights[tables.embedding], weights[tables.lm_head])
    try:
        return load_judge(file_of(source, program.decoding.loop), fingerprint)
    except ValueError as error:
        raise Declined(str(error)) from error
