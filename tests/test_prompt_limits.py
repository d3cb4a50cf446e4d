"""A chat template cannot reach out of its sandbox, and always comes to an end."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from mlx_router.errors import InvalidRequest, ModelCorrupt
from mlx_router.prompt import template as template_module
from mlx_router.prompt.budget import Budget
from mlx_router.prompt.builtin import TEMPLATE_NAMES, named_template
from mlx_router.prompt.template import ChatTemplate
from tests.models import CHAT_TEMPLATE
from tests.prompt_support import PLAIN, TOKENS, TOOLS, TURNS

# --- refusals -------------------------------------------------------------------------------


def refusal(source: str, messages: Sequence[Mapping[str, Any]] = PLAIN) -> str:
    """The message with which rendering is refused."""
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate(source, special_tokens=TOKENS).render(messages)
    assert caught.value.status == 400
    assert caught.value.param == "messages"
    assert len(caught.value.message) <= 500
    return caught.value.message


def test_a_template_says_itself_why_it_refuses() -> None:
    source = "{{ raise_exception('Roles must alternate, ' + messages[0].role + '!') }}"
    assert refusal(source).endswith("Roles must alternate, user!")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].name + 'x' }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ messages[9].content.strip() }}",
        "{{ none.x.y }}",
        "{{ {}['a'].b }}",
        "{{ 'a'.nothing() }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'x' %}",
        "{{ '%d' % 'a' }}",
    ],
)
def test_a_failure_inside_a_template_is_a_clear_400(source: str) -> None:
    assert "chat template" in refusal(source)


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% for %}{% endif %}", "{{ a|nothing }}"])
def test_a_broken_template_is_the_models_fault(source: str) -> None:
    template = ChatTemplate(source, special_tokens={})
    with pytest.raises(ModelCorrupt, match="chat template is not valid"):
        template.render(PLAIN)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'].mro() }}",
        "{{ messages.__class__.__base__ }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ tojson.__globals__ }}",
        "{{ ('{0.__class__.__init__.__globals__}').format('') }}",
        "{{ '{x.__class__}'.format_map({'x': 1}) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__subclasses__() }}",
        "{{ namespace(_Namespace__attrs=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages[0].pop('role') }}",
        "{% for m in messages %}{% do m.clear() %}{% endfor %}",
    ],
)
def test_a_template_cannot_reach_the_interpreter_or_change_its_input(source: str) -> None:
    messages = [dict(message) for message in PLAIN]
    before = json.dumps(messages)
    with pytest.raises(InvalidRequest):
        ChatTemplate(source, special_tokens={}).render(messages)
    assert json.dumps(messages) == before


# --- limits ---------------------------------------------------------------------------------

_DOUBLE = "{% for i in range(60) %}{% set ns.x = EXPR %}{% endfor %}"

BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "nested filtered loops": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}"
    "{% endfor %}{% endfor %}",
    "text in loops": "{% for a in range(99999) %}{% for b in range(999) %}aaaaaaaaaa{% endfor %}"
    "{% endfor %}",
    "large range": "{% for a in range(10 ** 12) %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 60 }}"
    "{% endfor %}",
    "macro of a long text": "{% macro f() %}{% for i in range(99999) %}{{ 'a' * 99999 }}"
    "{% endfor %}{% endmacro %}{{ f() }}",
    "block of a long text": "{% set a = 'a' * 9999999 %}{% set t %}{% for i in range(999) %}{{ a }}"
    "{% endfor %}{% endset %}{{ t }}",
    "times": "{{ 'a' * 10 ** 9 }}",
    "times a list": "{{ [1] * 10 ** 9 }}",
    "times the other way": "{{ (10 ** 9) * 'a' }}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "squares": "{% set ns = namespace(x=9) %}" + _DOUBLE.replace("EXPR", "ns.x * ns.x"),
    "plus": "{% set ns = namespace(x='a') %}" + _DOUBLE.replace("EXPR", "ns.x + ns.x"),
    "plus lists": "{% set ns = namespace(x=[1]) %}" + _DOUBLE.replace("EXPR", "ns.x + ns.x"),
    "tilde": "{% set ns = namespace(x='a') %}" + _DOUBLE.replace("EXPR", "ns.x ~ ns.x"),
    "nested lists": "{% set ns = namespace(x=[1]) %}"
    + _DOUBLE.replace("EXPR", "[ns.x, ns.x]")
    + "{{ ns.x }}",
    "nested tuples": "{% set ns = namespace(x=(1,)) %}"
    + _DOUBLE.replace("EXPR", "(ns.x, ns.x)")
    + "{{ ns.x in [ns.x] }}",
    "nested dicts": "{% set ns = namespace(x={}) %}"
    + _DOUBLE.replace("EXPR", "{'a': ns.x, 'b': ns.x}")
    + "{{ ns.x | tojson }}",
    "nested dict()": "{% set ns = namespace(x={}) %}"
    + _DOUBLE.replace("EXPR", "dict(a=ns.x, b=ns.x)")
    + "{{ ns.x | string }}",
    "nested namespaces": "{% set ns = namespace(x=1) %}"
    + _DOUBLE.replace("EXPR", "namespace(a=ns.x, b=ns.x)")
    + "{{ ns.x }}{% for i in range(99999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "center": "{{ 'a'.center(10 ** 9) }}",
    "center filter": "{{ 'a' | center(10 ** 9) }}",
    "folded filter": "{{ 'a' | center(1000000000) }}",
    "mapped filter": "{{ range(99999) | map('center', 99999) | list | length }}",
    "joined map": "{{ range(99999) | map('center', 99999) | join }}",
    "ljust": "{{ 'a'.ljust(10 ** 9) }}{{ 'a'.zfill(10 ** 9) }}",
    "expandtabs": "{{ ('\t' * 99999).expandtabs(10 ** 5) }}",
    "replace": "{% set a = 'a' * 99999 %}{{ a.replace('a', a) }}",
    "replace filter": "{% set a = 'a' * 99999 %}{{ a | replace('a', a) }}",
    "join": "{% set a = 'a' * 99999 %}{{ a.join(a) }}",
    "join filter": "{% set a = 'a' * 99999 %}{{ range(99999) | join(a) }}",
    "indent": "{{ ('a\n' * 99999) | indent(99999) }}",
    "indent by text": "{{ ('\n' * 99999) | indent('a' * 99999) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10 ** 9, 1) }}",
    "percent filter": "{{ '%1000000000d' | format(1) }}",
    "percent repeated": "{{ ('%(a)s' * 99999) % {'a': 'a' * 99999} }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format nested": "{{ '{:{}}'.format(1, 10 ** 9) }}",
    "format repeated": "{{ ('{0}' * 99999).format('a' * 99999) }}",
    "format by attr": "{{ ('{:1000000000}' | attr('format'))(1) }}",
    "batch": "{{ [1] | batch(10 ** 9, 0) | list | length }}",
    "slice": "{{ [1] | slice(10 ** 9) | list | length }}",
    "sum of lists": "{{ ([[1]] * 99999) | sum(start=[]) | length }}",
    "round": "{{ 1.5 | round(10 ** 9, 'floor') }}",
    "tojson indent": "{{ [[1]] | tojson(indent=10 ** 9) }}{{ [1] | tojson(true, 10 ** 9) }}",
    "tojson indent deep": "{% set ns = namespace(x=['a'] * 99999) %}{% for i in range(300) %}"
    "{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson(indent=100) }}",
    "encode": "{{ ('a' * 99999).encode('utf-16') }}",
    "translate": "{{ 'aaaa'.translate({97: 'a' * 99999}) }}",
    "to_bytes": "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "comparisons": "{% set a = 'a' * 9999999 + 'b' %}{% set b = 'a' * 9999999 + 'c' %}"
    "{% for i in range(99999) %}{{ a == b }}{% endfor %}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_stops_at_its_limits(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if bomb != "nested loops":  # one waits for the real limit, the others need not
        monkeypatch.setattr(template_module, "Budget", partial(Budget, 0.2))
    tracemalloc.start()
    start = time.thread_time()
    try:
        refusal(BOMBS[bomb])
    finally:
        seconds = time.thread_time() - start
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # The limit is one second; tracing and what is under way when it strikes come on top.
    assert seconds < 4
    assert peak < 400e6


def test_a_stopped_template_leaves_the_next_rendering_alone() -> None:
    bad = ChatTemplate(BOMBS["nested loops"], special_tokens={})
    good = ChatTemplate(CHAT_TEMPLATE, special_tokens={})
    expected = good.render(TURNS)
    with ThreadPoolExecutor(2) as pool:
        stopped = pool.submit(bad.render, PLAIN)
        for _ in range(20):
            assert good.render(TURNS) == expected
        with pytest.raises(InvalidRequest):
            stopped.result()
        assert pool.submit(good.render, TURNS).result() == expected
    with pytest.raises(InvalidRequest):
        bad.render(PLAIN)
    assert good.render(TURNS) == expected


def test_a_long_honest_conversation_is_well_within_the_limits() -> None:
    text = "A page of ordinary text, as agents send it.\n" * 200
    messages = [{"role": "system", "content": "s"}]
    for _ in range(300):
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    for source in (CHAT_TEMPLATE, *map(named_template, TEMPLATE_NAMES)):
        rendered = ChatTemplate(source, special_tokens={}).render(messages, TOOLS * 30)
        assert len(rendered) > 600 * 0.9 * len(text)
