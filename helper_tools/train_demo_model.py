#!/usr/bin/env python3
"""Makes the built-in demo model from nothing: data, tokenizer, training, export, evaluation."""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

NEEDED = """\
{error}

Training needs PyTorch and a few small packages. They are no part of MLX Router: use a venv apart:

    python3 -m venv train-venv
    train-venv/bin/pip install torch==2.13.0 numpy safetensors tokenizers jinja2 'mlx-lm[cpu]'
    train-venv/bin/python helper_tools/train_demo_model.py
"""
EPILOG = """\
examples:
  %(prog)s --dry-run            show the plan and some sample dialogues, train nothing
  %(prog)s                      train, export to mlx_router/demo/model, evaluate
  %(prog)s --compile --threads 1    faster for each core, after two minutes of compiling
  %(prog)s --evaluate-only      measure the model that is there

The same seed gives the same data and, on the same machine, the same model. The length is given in
steps, so that it does not depend on the machine's speed; --minutes only sets how many steps that is
at about 3500 tokens per second.
"""
TOKENS_PER_MINUTE = 3500 * 60


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("mlx_router/demo/model"), help="folder of the result")
    add("--steps", type=int, help="training steps (default: from --minutes)")
    add("--minutes", type=float, default=46.0, help="rough length of training (default 46)")
    add("--threads", type=int, default=2, help="CPU threads (default 2)")
    add("--seed", type=int, default=1, help="seed of data and weights (default 1)")
    add("--batch-tokens", type=int, default=3072, help="tokens in one step (default 3072)")
    add("--compile", action="store_true", help="a third faster; needs g++ or clang")
    add("--vocabulary", type=int, default=1280, help="tokens in the vocabulary (default 1280)")
    add("--checkpoint-every", type=int, default=300, help="steps between exports (default 300)")
    add("--cases", type=int, default=400, help="fresh dialogues to evaluate on (default 400)")
    add("--dry-run", action="store_true", help="print the plan and samples, then stop")
    add("--evaluate-only", action="store_true", help="evaluate the model in --out, then stop")
    options = parser.parse_args(arguments)
    if options.steps is None:
        options.steps = int(options.minutes * TOKENS_PER_MINUTE / options.batch_tokens)
    return options


def show_plan(options: argparse.Namespace, samples: int = 8) -> None:
    """What would be trained, and on what."""
    from demo_training.dialogues import dialogues
    from demo_training.encoding import load_template, render

    total = options.steps * options.batch_tokens
    print(f"{options.steps} steps of {options.batch_tokens} tokens ({total / 1e6:.1f}M tokens)")
    print(f"vocabulary {options.vocabulary}, seed {options.seed}, result in {options.out}\n")
    template = load_template()
    for sample in islice(dialogues(options.seed), samples):
        print(f"----- {sample.category}{' (thinking)' if sample.thinking else ''}")
        print(render(template, sample))


def run_training(options: argparse.Namespace) -> None:
    """Trains and exports."""
    import torch
    from demo_training.dialogues import dialogues
    from demo_training.encoding import Encoder, batches, load_template, render
    from demo_training.network import Network, Shape
    from demo_training.tokenizer import train_tokenizer
    from demo_training.training import export_rest, export_weights, train

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    template = load_template()
    corpus: Iterator[str] = (
        render(template, sample) for sample in islice(dialogues(options.seed + 1000), 8000)
    )
    tokenizer = train_tokenizer(corpus, options.vocabulary)
    shape = Shape(vocabulary=(tokenizer.get_vocab_size() + 31) // 32 * 32)
    network = Network(shape)
    count = sum(p.numel() for p in network.parameters())
    print(f"{count:,} parameters, vocabulary {shape.vocabulary}, {options.steps} steps", flush=True)
    export_rest(tokenizer, shape, options.out)
    data = batches(
        Encoder(tokenizer),
        dialogues(options.seed),
        options.batch_tokens,
        longest=1024,
        seed=options.seed,
    )
    final = train(
        network,
        data,
        options.steps,
        report=lambda progress: print(progress.line(), flush=True),
        checkpoint=lambda: export_weights(network, options.out),
        every=options.checkpoint_every,
        compiled=options.compile,
    )
    size = (options.out / "model.safetensors").stat().st_size
    print(f"trained: {final.line()}\nmodel.safetensors has {size:,} bytes")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; the exit code is 1 when a package is missing."""
    options = parse(arguments)
    try:
        if options.dry_run:
            show_plan(options)
            return 0
        if not options.evaluate_only:
            run_training(options)
        from demo_training.evaluate import evaluate

        evaluate(options.out, options.cases, options.seed + 2000)
    except ModuleNotFoundError as error:
        print(NEEDED.format(error=error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
