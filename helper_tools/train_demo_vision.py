#!/usr/bin/env python3
"""Makes the built-in vision model from nothing: pictures, dialogues, training, evaluation."""

import argparse
import sys
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent))

NEEDED = """\
{error}

Training needs PyTorch and a few small packages. They are no part of MLX Router: use a venv apart:

    python3 -m venv train-venv
    train-venv/bin/pip install torch==2.13.0 numpy safetensors tokenizers pillow
    train-venv/bin/python helper_tools/train_demo_vision.py

Evaluation needs MLX Router's own environment instead (mlx-vlm, pillow, fpdf2 and pypdfium2).
"""
EPILOG = """\
examples:
  %(prog)s --dry-run            show the plan and some sample chats, train nothing
  %(prog)s --dry-run --sheet samples.png    the same, with the pictures
  %(prog)s                      train and export to mlx_router/demo/vision
  %(prog)s --evaluate-only      measure the model that is there, through mlx-vlm

The same seed and fonts give the same data and, on the same machine, the same model.
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("mlx_router/demo/vision"), help="folder of the result")
    add("--steps", type=int, default=6000, help="training steps (default 6000)")
    add("--minutes", type=float, help="end after this time at the latest (default: no limit)")
    add("--threads", type=int, default=2, help="CPU threads (default 2)")
    add("--seed", type=int, default=1, help="seed of data and weights (default 1)")
    add("--fonts", type=Path, help="a folder with more fonts (.ttf) to draw with")
    add("--start", type=Path, help="go on with the exported model in this folder")
    add("--first-step", type=int, default=0, help="where a training that goes on is (default 0)")
    add("--vocabulary", type=int, default=512, help="tokens in the vocabulary (default 512)")
    add("--checkpoint-every", type=int, default=500, help="steps between exports (default 500)")
    add("--cases", type=int, default=40, help="most cases of each kind to evaluate on (default 40)")
    add("--dry-run", action="store_true", help="print the plan and samples, then stop")
    add("--sheet", type=Path, help="with --dry-run: write sample pictures to this file")
    add("--evaluate-only", action="store_true", help="evaluate the model in --out, then stop")
    return parser.parse_args(arguments)


def use_fonts(folder: Path | None) -> list[str]:
    """Adds the fonts of a folder to those drawn with."""
    from demo_training import vision_text

    vision_text.FONTS[:] = vision_text.font_files(folder)
    return vision_text.FONTS


def show_plan(options: argparse.Namespace, samples: int = 12) -> None:
    """What would be trained, and on what."""
    from demo_training.vision_batches import some_grid
    from demo_training.vision_dialogues import chat
    from demo_training.vision_scenes import make_scene
    from PIL import Image

    fonts = use_fonts(options.fonts)
    print(f"{options.steps} steps, {len(fonts)} fonts, seed {options.seed}, into {options.out}\n")
    random = Random(options.seed)
    pictures = []
    for number in range(samples):
        scenes = [make_scene(some_grid(random, 1.0), random) for _ in range(1 + (number % 6 == 5))]
        pictures += [scene.image for scene in scenes]
        system, turns = chat(scenes, random)
        print(f"----- {', '.join(f'{s.image.width}x{s.image.height}' for s in scenes)}  {system}")
        for turn in turns:
            print(f"  {turn.question!r}\n    {turn.answer}")
    if options.sheet:
        sheet = Image.new("RGB", (1000, 170 * ((len(pictures) + 3) // 4)), "gray")
        for number, picture in enumerate(pictures):
            picture.thumbnail((245, 165))
            sheet.paste(picture, (250 * (number % 4), 170 * (number // 4)))
        sheet.save(options.sheet)


def run_training(options: argparse.Namespace) -> None:
    """Trains and exports."""
    import torch
    from demo_training.tokenizer import token_id
    from demo_training.vision_batches import train_tokenizer
    from demo_training.vision_network import Network, Shape
    from demo_training.vision_training import (
        HEADS,
        Batches,
        export_rest,
        export_weights,
        train,
    )
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    fonts = use_fonts(options.fonts)
    if options.start:
        tokenizer = Tokenizer.from_file(str(options.start / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(options.vocabulary, options.seed + 1000)
    shape = Shape(vocabulary=(tokenizer.get_vocab_size() + 31) // 32 * 32)
    network = Network(shape, HEADS)
    if options.start:
        network.take(load_file(options.start / "model.safetensors"))
    count = sum(tensor.numel() for tensor in network.exported().values())
    print(f"{count:,} parameters, vocabulary {shape.vocabulary}, {options.steps} steps", flush=True)
    export_rest(tokenizer, shape, options.out)
    steps = options.steps - options.first_step
    made = Batches(tokenizer.to_str(), options.seed, options.first_step, options.steps, fonts)
    data = iter(
        torch.utils.data.DataLoader(made, batch_size=None, num_workers=1, prefetch_factor=8)
    )
    final = train(
        network,
        data,
        steps,
        token_id(tokenizer, "<|image_pad|>"),
        report=lambda progress: print(progress.line(), flush=True),
        checkpoint=lambda: export_weights(network, options.out),
        every=options.checkpoint_every,
        minutes=options.minutes,
    )
    size = (options.out / "model.safetensors").stat().st_size
    print(f"trained: {final.line()}\nmodel.safetensors has {size:,} bytes")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; the exit code is 1 when a package is missing."""
    options = parse(arguments)
    try:
        if options.dry_run:
            show_plan(options)
        elif options.evaluate_only:
            from demo_training.vision_evaluate import evaluate

            evaluate(options.out, options.cases, options.seed + 2000)
        else:
            run_training(options)
    except ModuleNotFoundError as error:
        print(NEEDED.format(error=error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
