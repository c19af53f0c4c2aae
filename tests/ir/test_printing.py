"""Programs print as Python that parses, and differences show what a pass did."""

import ast
from dataclasses import replace

import torch

from optimize.ir.printing import graph_text, program_diff, program_text
from optimize.ir.program import Program

EXPECTED_SOLVER = """\
def solver(latent, prediction, coefficients):
    # latent: float32 [batch, 6, 4]
    # prediction: float32 [batch, 6, 4]
    # coefficients: float32 [1, 2]
    solver_step_default = optimize.solver_step(latent, prediction, [], coefficients, '1x')  \
# float32 [batch, 6, 4]
    getitem = solver_step_default[0]  # float32 [batch, 6, 4]
    return {"latent": getitem}"""

EXPECTED_LOOP = """\
def program(request, noise, table):
    latent = noise["latent"]  # float32 [batch, 6, 4]
    prediction = zeros()  # float32 [batch, 6, 4]
    for step in range(4):
        prediction = denoiser(latent=latent, timestep=table["timestep"][step], \
shift=request["shift"])["prediction"]
        latent = solver(latent=latent, prediction=prediction, \
coefficients=table["coefficients"][step])["latent"]
    return {"latent": latent}
"""


def test_graph_and_loop_read_as_python(toy_program: Program) -> None:
    text = program_text(toy_program)
    ast.parse(text)
    assert EXPECTED_SOLVER in text
    assert text.endswith(EXPECTED_LOOP)
    assert 'aten.linear(view, w["query.weight"], w["query.bias"])' in text


def test_difference_shows_only_what_changed(toy_program: Program) -> None:
    assert program_diff(toy_program, toy_program) == ""
    graph = toy_program.graphs["solver"].copied()
    for node in graph.graph.nodes:
        if node.target is torch.ops.optimize.solver_step.default:
            node.args = (*node.args[:4], "11", *node.args[5:])
    after = replace(toy_program, graphs={**toy_program.graphs, "solver": graph})
    changed = [
        line
        for line in program_diff(toy_program, after).splitlines()
        if line[0] in "+-" and not line.startswith(("+++", "---"))
    ]
    assert changed == [
        f"{sign}    solver_step_default = optimize.solver_step(latent, prediction, [], "
        f"coefficients, '{pattern}')  # float32 [batch, 6, 4]"
        for sign, pattern in (("-", "1x"), ("+", "11"))
    ]


def test_unfinished_graphs_still_print(toy_program: Program) -> None:
    graph = toy_program.graphs["solver"].copied()
    for node in graph.graph.nodes:
        node.meta.pop("val", None)
    assert "# None" in graph_text("solver", graph)
