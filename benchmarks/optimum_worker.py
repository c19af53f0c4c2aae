"""Generates with the optimum-onnx export of a model, once per line read; its own environment.

    python optimum_worker.py FOLDER TOKENS THREADS

optimum-onnx needs an older transformers than optimize is developed with, so it runs in a virtual
environment of its own. Prints "ready", then seconds and tokens for each line, as JSON.
"""

import json
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import onnxruntime as ort
import torch
from optimum.onnxruntime import ORTModelForCausalLM


def main(folder: str, tokens: int, threads: int) -> None:
    """Answers prompts given as JSON lists of token ids."""
    torch.set_num_threads(threads)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = ORTModelForCausalLM.from_pretrained(folder, export=True, session_options=options)
    print("ready", flush=True)
    for line in sys.stdin:
        prompt = torch.tensor([json.loads(line)])
        start = time.perf_counter()
        answer = model.generate(
            prompt,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, answer[0, prompt.shape[1] :].tolist()]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
