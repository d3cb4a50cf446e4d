"""``python -m benchmarks``: measure, compare, report."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.measures import GROUPS, QUICK, Plan
from benchmarks.report import as_json, as_markdown, as_text, conditions
from benchmarks.suite import Progress, Suite

EXIT_INTERRUPTED = 130

DESCRIPTION = """\
Measures this server against the two things it has to be compared with, on one machine and in one
run: the bare loop of mlx-lm's BatchGenerator (which it can at best equal) and mlx_lm.server.

what is measured:
  decode      tokens/s of one stream: ours ÷ bare loop (aim: at least 0.97), ours ÷ mlx_lm.server
  aggregate   tokens/s of 2 to 32 streams together (aims: at least 0.95 of the bare loop; from 8
              on at least 1.1 of mlx_lm.server)
  ttft        time to the first token: ours - bare loop (aim: at most 5 ms); long prompts as a ratio
  cpu         CPU time of our server per streamed token, without a model (aim: at most 15 µs)
  passes      forward passes of the model per token, times streams (aim: at most 1.05)
  overhead    requests/s and latency of answers of one token, without a model
  swap        two models and memory for one: how often they are swapped (aim: at most a third of
              mlx_lm.server's swaps), the longest wait (aim: at most three fair shares)
  load        time to the first token of a swap against reading its files and computing that token
              (aim: at least 0.8); the longest gap of a stream while another model comes (aim: at
              most three steps + 50 ms)
  vision      chats about images: the first token of a second turn against the first turn and
              mlx_vlm.server; the longest gap of a stream beside images against beside a text (1.5)
  prefix      first token of a long prompt that was asked before against the first time: at once
              (aim: at most 0.05), after a swap and after a restart (0.2); how much of an agent's
              conversation is computed (15 %)
  fairness    a long prompt beside 4 streams: their longest gap in slices (aim: at most 1.5), its
              first token against alone (1.3); does a short request overtake it
  speculation tokens/s with prompt_lookup against without, where an answer copies (aim: at least
              1.5) and where it does not (0.95)
  kv          kv_bits 8 and 4: size of the KV cache, and how much answers change

The model is made up on the spot: random weights in float32, so nothing is downloaded. On Linux
OpenBLAS is preloaded into all three (Debian: libopenblas0-pthread). benchmarks/README.md says why,
and how to read the numbers. Ratios count, not tokens/s: they hold on other machines too.
"""

EPILOG = """\
examples:
  uv run python -m benchmarks --quick             does it work? ignore the numbers
  uv run python -m benchmarks                     everything; leave the machine alone meanwhile
  uv run python -m benchmarks --only cpu,overhead --markdown report.md

exit codes: 0 everything was measured (aims may be missed: the report says so), 1 a measurement
failed, 2 wrong use, 130 interrupted
"""

QUICK_WARNING = "A smoke run (--quick): it shows that everything works; its numbers mean nothing."


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: small model, few tokens")
    parser.add_argument(
        "--only",
        metavar="GROUPS",
        type=_groups,
        default=list(GROUPS),
        help=f"measure only these, separated by commas: {','.join(GROUPS)}",
    )
    parser.add_argument(
        "--rounds", metavar="N", type=_positive, help="rounds of every comparison (3 to 5)"
    )
    parser.add_argument(
        "--tokens",
        metavar="N",
        type=_positive,
        help="tokens per answer of decode and aggregate (128)",
    )
    parser.add_argument(
        "--openblas", metavar="FILE", help="the OpenBLAS library to preload; none: without it"
    )
    parser.add_argument(
        "--against",
        metavar="URL",
        type=_local_port,
        help="compare with this server in place of mlx_lm.server (decode, aggregate, ttft, prefix, "
        "fairness); it runs on this machine, with the model that benchmarks/peers.md names",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all measurements here")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the report here")
    return parser.parse_args(words)


def _groups(text: str) -> list[str]:
    chosen = text.split(",")
    for group in chosen:
        if group not in GROUPS:
            raise argparse.ArgumentTypeError(f"{group!r} is none of {', '.join(GROUPS)}")
    return [group for group in GROUPS if group in chosen]


def _local_port(url: str) -> int:
    """Ratios hold between servers of one machine only, so the host must be this one."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost") and parts.port:
            return parts.port
    except ValueError:  # not a port
        pass
    raise argparse.ArgumentTypeError(f"{url!r} is not like http://127.0.0.1:8000")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 1")
    return int(text)


def plan_of(arguments: argparse.Namespace) -> Plan:
    plan = QUICK if arguments.quick else Plan()
    if arguments.rounds:
        names = [each.name for each in fields(Plan) if each.name.endswith("rounds")]
        plan = replace(plan, **dict.fromkeys(names, arguments.rounds))
    return replace(plan, tokens=arguments.tokens) if arguments.tokens else plan


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    arguments = parse(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that every child is stopped
    plan = plan_of(arguments)
    facts = conditions(["python", "-m", "benchmarks", *words])
    suite = Suite(plan, arguments.openblas, Progress(), arguments.against)
    try:
        suite.run(arguments.only)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    facts |= suite.facts
    results = suite.results
    warning = QUICK_WARNING if arguments.quick else None
    if arguments.json is not None:
        text = json.dumps(as_json(results, facts), indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n")
    if arguments.markdown is not None:
        arguments.markdown.write_text(as_markdown(results, facts, warning))
    print(as_text(results, facts, warning), end="")
    return 1 if any(result.value is None for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
