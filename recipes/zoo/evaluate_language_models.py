"""Prints the figures of the zoo's language models: held-out text, agreement, right answers.

python -m optimize.recipes.zoo.evaluate_language_models
"""

from __future__ import annotations

import random

import torch

from optimize.recipes.zoo.arithmetic import load_arithmetic, load_arithmetic_draft
from optimize.recipes.zoo.arithmetic_data import (
    END,
    LONGEST_ANSWER,
    Problem,
    draw_problems,
    first_mistake,
)
from optimize.recipes.zoo.language_model_judge import (
    agreement,
    arithmetic_score,
    greedy,
    text_score,
    windows_of,
)
from optimize.recipes.zoo.rotary_language_model import RotaryLanguageModel
from optimize.recipes.zoo.shakespeare import load_shakespeare, load_shakespeare_draft
from optimize.recipes.zoo.shakespeare_data import byte_counts, load_held_out_play

WINDOWS = 96
WINDOW = 257
"""Tokens of a window; all but the first are foretold."""

PROBLEMS = 500
SEED = 2_000_000


@torch.no_grad()
def parting_of_ways(
    draft: RotaryLanguageModel, target: RotaryLanguageModel, problems: list[Problem]
) -> tuple[float, float]:
    """How the draft's greedy answers differ from what the target would have said, token by token.

    Returns:
        Share of the draft's tokens that are not the target's likeliest after the same tokens, and
        the share of those that are no mistake.
    """
    prompts = torch.tensor([problem.prompt for problem in problems])
    answers = greedy(draft, prompts, LONGEST_ANSWER, END)
    logits = target.next_token_logits(torch.cat([prompts, answers], dim=1))
    wanted = logits[:, prompts.shape[1] - 1 : -1].argmax(-1)
    tokens, others, harmless = 0, 0, 0
    for problem, answer, said in zip(problems, answers.tolist(), wanted.tolist(), strict=True):
        mistake = first_mistake(problem.prompt, answer)
        # What follows a mistake is neither right nor wrong.
        end = answer.index(END) + 1 if END in answer else len(answer)
        end = end if mistake is None else mistake + 1
        differing = [place for place in range(end) if answer[place] != said[place]]
        tokens += end
        others += len(differing)
        harmless += sum(place != mistake for place in differing)
    return others / tokens, harmless / others


def main() -> None:
    """Prints all figures, a line each."""
    torch.set_num_threads(1)
    target, draft = load_shakespeare(), load_shakespeare_draft()
    windows = windows_of(load_held_out_play(), WINDOWS, WINDOW)
    sizes = byte_counts()
    for name, model in (("shakespeare", target), ("shakespeare draft", draft)):
        score = text_score(model, windows, sizes)
        print(f"{name}: {score.nats_per_token:.3f} nats/token, {score.nats_per_byte:.3f} nats/byte")
    found = agreement(draft, target, windows)
    print(f"draft and target: acceptance rate {found.acceptance_rate:.3f}")
    print(f"draft and target: same likeliest token {found.same_likeliest:.3f}")
    problems = draw_problems(PROBLEMS, random.Random(SEED), held_out=True)
    worker, hasty = load_arithmetic(), load_arithmetic_draft()
    for name, model in (("arithmetic", worker), ("arithmetic draft", hasty)):
        right = arithmetic_score(model, problems)
        print(f"{name}: right {right.value:.3f} [{right.low:.4g}, {right.high:.4g}]")
    differing, harmless = parting_of_ways(hasty, worker, problems)
    print(f"the draft's tokens that are not the target's: {differing:.3f}")
    print(f"of these, no mistake: {harmless:.3f}")


if __name__ == "__main__":
    main()
