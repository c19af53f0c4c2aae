"""A replay gives what the graph gives, from wherever it was halted, and forgets what is used up."""

import torch

from optimize.ir.replay import Replay
from optimize.passes.calibration import requests
from optimize.passes.trajectory import denoiser_inputs
from tests.passes.tiny_video import tiny_video

SDPA = torch.ops.aten.scaled_dot_product_attention.default


def prepared():
    program = tiny_video()
    (inputs,) = denoiser_inputs(program, requests(program)[0], 1)
    graph = program.graphs["denoiser"]
    sites = [node for node in graph.graph.nodes if node.target is SDPA]
    expected = graph.run(program.weights, inputs)["prediction"]
    return Replay(graph, program.weights, inputs), sites, expected


def test_output_is_that_of_the_graph_wherever_the_run_was_halted():
    run, sites, expected = prepared()
    assert torch.equal(run.output("prediction"), expected)
    for site in sites:
        run.advance(site)
        # Twice: the rest is run on a copy, and the run itself stays halted.
        assert torch.equal(run.output("prediction"), expected)
        assert torch.equal(run.output("prediction"), expected)


def test_another_computation_may_stand_for_a_node():
    run, sites, expected = prepared()
    run.advance(sites[1])
    changed = run.output("prediction", {sites[2]: lambda query, key, value: value})
    assert not torch.equal(changed, expected)
    same = run.output("prediction", {sites[2]: SDPA})
    assert torch.equal(same, expected)


def test_arguments_of_the_node_ahead_are_at_hand_and_older_values_are_gone():
    run, sites, _ = prepared()
    run.advance(sites[2])
    args, kwargs = run.arguments(sites[2])
    assert [tuple(item.shape) for item in args] == [(1, 2, 36, 2)] * 3 and not kwargs
    assert run.value(sites[2].args[0]) is args[0]
    assert sites[0] not in run._values
