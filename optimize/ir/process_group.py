"""The processes that share one model: joining them, leaving them, and what failed between them.

`torchrun` starts the processes and sets what they need to find each other. A process that ends or
hangs makes an exchange fail in all others, within the timeout, with one `ProcessError`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as distributed

from optimize.ir.errors import ProcessError, RecipeError

TIMEOUT_S = 120.0


@contextmanager
def process_group(processes: int, timeout_s: float = TIMEOUT_S) -> Iterator[int]:
    """Joins the processes that `torchrun` started; yields this one's rank, 0 with one process.

    Args:
        processes: how many there must be; with 1 there is no group.
        timeout_s: longest wait for another process, in seconds, > 0.
    Raises:
        RecipeError: there is another number of processes.
        ProcessError: another process ended or did not answer.
    """
    if processes == 1:
        yield 0
        return
    found = os.environ.get("WORLD_SIZE", "1")
    if found != str(processes):
        raise RecipeError(
            f"parallel: found {found} {'process' if found == '1' else 'processes'}, expected "
            f"{processes}; start with `torchrun --nproc-per-node {processes}`"
        )
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if has_cuda else "gloo"
    try:
        distributed.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except RuntimeError as error:
        raise ProcessError(
            f"parallel: could not join {processes} processes within {timeout_s:g} s: "
            f"{_first_line(error)}; see why another one did not start, and start all again"
        ) from error
    try:
        yield distributed.get_rank()
    finally:
        distributed.destroy_process_group()


def exchange_error(error: RuntimeError, graph: str) -> ProcessError | None:
    """What a user should read when an exchange failed; None for any other error of a graph.

    Gloo raises plain RuntimeErrors, told by the source file they name; NCCL has a type.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    if not isinstance(error, distributed.DistError) and "/gloo/" not in str(error):
        return None
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    return ProcessError(
        f"process {rank} of {processes}: graph {graph!r}: found another process ended or silent, "
        f"expected its part of the tokens ({_first_line(error)}); see what that process said, and "
        "start all again"
    )


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("] ")[2].partition(". ")[0] or str(error).partition("\n")[0]
