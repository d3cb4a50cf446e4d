"""The text engine on real models: failures inside a step, models that cannot batch, memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_router.domain import FinishReason
from mlx_router.engine.base import Job, Sampling, StepResult
from mlx_router.errors import RouterError
from mlx_router.runtime.engine_thread import Stepped
from tests.context_support import DEMO
from tests.engine_support import Driver, tokens
from tests.models import copy_model
from tests.test_loading import leave_an_error

PROMPTS = {1: [5, 6, 7], 2: [9] * 20, 3: [300, 20, 41, 7], 4: [77, 78]}


def jobs(tokens: int = 12, **sampling: Any) -> list[Job]:
    return [
        Job(id=number, prompt=prompt, max_tokens=tokens, sampling=Sampling(**sampling))
        for number, prompt in PROMPTS.items()
    ]


class FailingRunner:
    """A runner whose steps fail at the given calls, after having moved its caches on."""

    def __init__(self, inner: Any, failing: set[int]) -> None:
        self._inner = inner
        self._failing = failing
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def step(self) -> list[StepResult]:
        self._calls += 1
        results: list[StepResult] = self._inner.step()
        if self._calls in self._failing:
            raise RuntimeError("injected")
        return results


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3}])
def test_a_failed_step_is_recomputed_and_no_answer_changes(
    drive: Callable[[Path], Driver], tiny_models: Path, sampling: dict[str, Any]
) -> None:
    driver = drive(tiny_models / "tiny" / "llama")
    undisturbed = tokens(driver.run(jobs(**sampling)))
    driver.engine._runner = FailingRunner(driver.engine._runner, {6})
    disturbed = driver.run(jobs(**sampling))
    # What the failed step computed is lost with it and computed again.
    assert tokens(disturbed) == undisturbed
    assert all(got[-1].finish is FinishReason.LENGTH for got in disturbed.values())


class LeavingRunner(FailingRunner):
    """One whose failing steps also leave an error behind that nobody has looked at."""

    def step(self) -> list[StepResult]:
        try:
            return super().step()
        except RuntimeError:
            leave_an_error()
            raise


def test_an_error_that_a_failed_step_leaves_behind_costs_no_stream(
    drive: Callable[[Path], Driver], tiny_models: Path
) -> None:
    driver = drive(tiny_models / "tiny" / "llama")
    undisturbed = tokens(driver.run(jobs()))
    driver.engine._runner = LeavingRunner(driver.engine._runner, {6})
    assert tokens(driver.run(jobs())) == undisturbed


def test_a_step_that_fails_again_fails_all_of_the_batch_and_the_engine_lives(
    drive: Callable[[Path], Driver], tiny_models: Path
) -> None:
    driver = drive(tiny_models / "tiny" / "llama")
    expected = tokens(driver.run(jobs()))
    engine, make = driver.engine, driver.engine._make_runner
    engine._runner = FailingRunner(engine._runner, {3})
    engine._make_runner = lambda batches: FailingRunner(make(batches), {1})  # type: ignore[method-assign]
    failed = driver.run(jobs())
    assert all(got[-1].error for got in failed.values())
    engine._make_runner = make  # type: ignore[method-assign]
    engine._runner = make(True)
    assert tokens(driver.run(jobs())) == expected


class PoisonedRunner(FailingRunner):
    """Fails at every step while the job 99 is in it, having computed it."""

    def step(self) -> list[StepResult]:
        results: list[StepResult] = self._inner.step()
        if 99 in self._inner._uids:
            raise RuntimeError("injected")
        return results


def test_a_job_that_fails_at_every_step_costs_the_others_two_recoveries_at_most(
    drive: Callable[[Path], Driver], tiny_models: Path
) -> None:
    driver = drive(tiny_models / "tiny" / "llama")
    expected = tokens(driver.run(jobs()))
    engine, make = driver.engine, driver.engine._make_runner
    made = []

    def make_poisoned(batches: bool) -> Any:
        made.append(PoisonedRunner(make(batches), set()))
        return made[-1]

    engine._make_runner = make_poisoned  # type: ignore[method-assign]
    engine._runner = make_poisoned(True)
    poison = Job(id=99, prompt=[1, 2, 3], max_tokens=5, sampling=Sampling())
    results = driver.run([poison])
    assert results[99][-1].error
    assert len(made) <= 3
    assert tokens(driver.run(jobs())) == expected


def test_a_job_that_is_not_taken_fails_alone(
    drive: Callable[[Path], Driver], tiny_models: Path
) -> None:
    driver = drive(tiny_models / "tiny" / "llama")
    expected = tokens(driver.run(jobs()))
    bad = Job(id=99, prompt=[1, 2], max_tokens=0, sampling=Sampling())
    results = driver.run([*jobs(), bad])
    assert results.pop(99)[-1].error
    assert tokens(results) == expected


def make_gemma2(folder: Path, tokenizer_of: Path) -> Path:
    """Its attention mixes up the rows of a batch: see mlx_router/engine/probe.py."""
    from mlx_lm.utils import _get_classes, save_model

    config = {
        "model_type": "gemma2",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "vocab_size": 512,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }
    copy_model(tokenizer_of, folder)
    for file in folder.glob("model*"):
        file.unlink()
    model_class, arguments = _get_classes(config)
    mx.random.seed(0)
    model = model_class(arguments.from_dict(config))
    mx.eval(model.parameters())
    save_model(str(folder), model)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_model_that_cannot_batch_is_served_one_by_one_and_correctly(
    drive: Callable[[Path], Driver], tiny_models: Path, tmp_path: Path
) -> None:
    import mlx_lm
    from mlx_lm.generate import generate_step

    folder = make_gemma2(tmp_path / "gemma2", tiny_models / "tiny" / "llama")
    driver = drive(folder)
    assert not driver.loaded.batches
    together = tokens(driver.run(jobs(tokens=8)))
    model, _ = mlx_lm.load(str(folder))
    for number, prompt in PROMPTS.items():
        alone = [
            token
            for (token, _), _ in zip(
                generate_step(mx.array(prompt), model, max_tokens=8), range(8), strict=False
            )
        ]
        assert together[number] == alone


def test_an_abort_takes_effect_before_the_next_step(
    drive: Callable[[Path], Driver], tiny_models: Path
) -> None:
    driver = drive(tiny_models / "tiny" / "llama")
    long, short = jobs(tokens=1000)[0], jobs(tokens=5)[1]
    driver.thread.add(long)
    report = driver.reports.get(timeout=60)
    assert isinstance(report, Stepped)
    driver.thread.abort(long.id)
    driver.thread.add(short)
    steps: list[list[int]] = []
    while len(steps) < 5:  # from the first step with the new job on, the old one is gone
        report = driver.reports.get(timeout=60)
        assert isinstance(report, Stepped)
        if steps or any(result.job_id == short.id for result in report.results):
            steps.append([result.job_id for result in report.results])
    assert steps == [[short.id]] * 5
    assert not driver.engine.busy


def test_logprobs_are_the_log_softmax_of_the_model(
    drive: Callable[[Path], Driver], tiny_models: Path
) -> None:
    import mlx_lm

    folder = tiny_models / "tiny" / "llama"
    driver = drive(folder)
    job = Job(id=1, prompt=[5, 6, 7], max_tokens=2, sampling=Sampling(), logprobs=5)
    first, second = driver.run([job])[1]
    model, _ = mlx_lm.load(str(folder))
    for context, result in (([5, 6, 7], first), ([5, 6, 7, first.token], second)):
        logits = model(mx.array([context]))[0, -1]
        expected = logits - mx.logsumexp(logits)
        assert result.logprob == pytest.approx(expected[result.token].item(), abs=1e-4)
        assert len(result.top_logprobs) == 5
        assert result.top_logprobs[0][0] == int(mx.argmax(expected).item())  # type: ignore[arg-type]
        values = [value for _, value in result.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert values[-1] == pytest.approx(mx.sort(expected)[-5].item(), abs=1e-4)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(presence_penalty=1.0)])
def test_the_probabilities_of_a_model_in_half_precision_add_up_to_one(
    drive: Callable[[Path], Driver], sampling: Sampling
) -> None:
    """mlx-lm computes them in the precision of the model, and is off by a percent."""
    driver = drive(DEMO)
    job = Job(id=1, prompt=[1, 2, 3], max_tokens=8, sampling=sampling, logprobs=10**6)
    for result in driver.run([job])[1]:
        values = dict(result.top_logprobs)
        assert len(values) > 1000
        assert sum(map(math.exp, values.values())) == pytest.approx(1, abs=1e-4)
        assert result.token is not None
        assert result.logprob == values[result.token] <= 0


def test_a_stop_id_ends_the_sequence(drive: Callable[[Path], Driver], tiny_models: Path) -> None:
    driver = drive(tiny_models / "tiny" / "llama")
    whole = tokens(driver.run(jobs()))[2]
    wanted = whole[5]
    assert wanted is not None
    job = Job(
        id=2, prompt=PROMPTS[2], max_tokens=12, sampling=Sampling(), stop_ids=frozenset({wanted})
    )
    results = driver.run([job])[2]
    assert results[-1].finish is FinishReason.STOP
    assert [result.token for result in results] == whole[: whole.index(wanted) + 1]


def test_a_load_that_fails_says_why_without_paths(tiny_models: Path, tmp_path: Path) -> None:
    bad = copy_model(tiny_models / "tiny" / "llama", tmp_path / "bad")
    config = json.loads((bad / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (bad / "config.json").write_text(json.dumps(config))
    with pytest.raises(RouterError) as caught:
        Driver(bad)
    assert "bad" in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_closing_gives_the_memory_back(tiny_models: Path) -> None:
    before = mx.get_active_memory()
    for _ in range(3):
        driver = Driver(tiny_models / "tiny" / "qwen3")
        driver.run(jobs())
        assert mx.get_active_memory() > before
        driver.close()
        assert mx.get_active_memory() <= before
