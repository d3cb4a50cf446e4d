"""Chats to token ids in pieces: the ids are those of the whole text, and what has not changed of a
conversation is not tokenised again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from mlx_router import MLXModelManager
from mlx_router.domain import (
    ChatPrompt,
    GenerationRequest,
    Message,
    ModelCard,
    ModelKind,
    TextPart,
    Tool,
)
from mlx_router.engine.base import Encoded
from mlx_router.engine.codec import MLXCodec
from mlx_router.engine.encoding import PromptEncoder
from mlx_router.engine.scripted import ScriptedFactory
from mlx_router.engine.scripted_text import ScriptedCodec
from mlx_router.errors import InvalidRequest
from mlx_router.runtime.chat import collect
from tests.models import write_tokenizer
from tests.server import ServerProcess

CUTS = ("<|turn|>", "<|end|>", "[INST]")
WRITTEN = " ".join(CUTS)  # as in a template
CORPUS = [
    "The router answers every question that it can, and says so when it cannot.",
    "def add(first, second):\n    return first + second  # the sum\n\n",
    "Cr\u00e8me br\u00fbl\u00e9e, \u65e5\u672c \u4f60\u597d, \U0001f642 1234567890",
] * 5


def byte_level(*, prefix: bool) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    return trained(made, trainers.BpeTrainer, alphabet=pre_tokenizers.ByteLevel.alphabet())


def sentence_piece(model: str, prepend: str) -> Tokenizer:
    unigram = model == "unigram"
    made = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    return trained(made, trainers.UnigramTrainer if unigram else trainers.BpeTrainer)


def llama_2() -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    made.normalizer = normalizers.Sequence(steps)
    return trained(made, trainers.BpeTrainer)


def bert() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return trained(made, trainers.WordPieceTrainer)


def trained(made: Tokenizer, trainer: Any, alphabet: list[str] | None = None) -> Tokenizer:
    wanted: dict[str, Any] = {"vocab_size": 400, "special_tokens": ["<unk>"]}
    if alphabet is not None:
        wanted["initial_alphabet"] = alphabet
    if trainer is trainers.UnigramTrainer:
        wanted["unk_token"] = "<unk>"
    made.train_from_iterator(CORPUS, trainer(show_progress=False, **wanted))
    return made


def with_tokens(made: Tokenizer) -> PreTrainedTokenizerFast:
    """As models have them: a mark of a turn that takes the space behind it, one that takes the
    space before it, lines as tokens, and tokens that are normalised."""
    made.add_special_tokens([AddedToken(CUTS[0], normalized=False)])
    made.add_special_tokens([AddedToken(CUTS[1], normalized=False, rstrip=True)])
    made.add_special_tokens([AddedToken(CUTS[2], normalized=False)])
    made.add_special_tokens([AddedToken("<mask>", normalized=False, lstrip=True)])
    made.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("  ", normalized=False)])
    made.add_tokens([AddedToken("return", normalized=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=CUTS[1])


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: byte_level(prefix=False),
    "byte-level, prefix space": lambda: byte_level(prefix=True),
    "BPE, metaspace always": lambda: sentence_piece("bpe", "always"),
    "unigram, metaspace always": lambda: sentence_piece("unigram", "always"),
    "BPE, metaspace first": lambda: sentence_piece("bpe", "first"),
    "unigram, metaspace first": lambda: sentence_piece("unigram", "first"),
    "Llama 2": llama_2,
    "BERT": bert,
}


class Counted:
    """A tokenizer, and how many characters it was given."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.characters = 0

    @property
    def backend_tokenizer(self) -> Counted:
        backend = Counted(self._inner.backend_tokenizer)
        backend._add = self._add  # type: ignore[method-assign]
        return backend

    def encode(self, text: str, **options: Any) -> Any:
        self._add(text)
        return self._inner.encode(text, **options)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self._add(*texts)
        return self._inner.encode_batch_fast(texts, **options)

    def _add(self, *texts: str) -> None:
        self.characters += sum(map(len, texts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return with_tokens(KINDS[request.param]())


@pytest.fixture(scope="module")
def encoders(tokenizer: PreTrainedTokenizerFast) -> list[PromptEncoder]:
    """By size of their pieces."""
    return [PromptEncoder(tokenizer, WRITTEN, least_piece=size) for size in (1, 10, 40)]


def whole(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def conversation(turns: int, *, begin: str = "") -> str:
    """A text of which every turn has about a thousand characters."""
    words = "The router answers every question, and says so when it cannot. "
    return begin + "".join(f"<|turn|>user\n{i}: {words * 16}<|end|>\n" for i in range(turns))


# --- the same ids ---------------------------------------------------------------------------

FRAGMENTS = st.sampled_from([*CUTS, "<mask>", "return", "<|", "|>", "<|tur", "\n\n", "  ", " a"])
TEXTS = st.lists(FRAGMENTS | st.text(max_size=8) | st.sampled_from(CORPUS), max_size=16)


@given(parts=TEXTS)
@settings(max_examples=60, deadline=None)
def test_pieces_have_the_ids_of_the_whole_text(
    tokenizer: PreTrainedTokenizerFast, encoders: list[PromptEncoder], parts: list[str]
) -> None:
    text = "".join(parts)
    expected = whole(tokenizer, text)
    for encoder in encoders:
        for _ in range(2):  # the second time from what was kept
            assert encoder.encode(text, scope="")[0] == expected


SELDOM = st.sampled_from([False] * 7 + [True])
TOKEN = st.builds(
    AddedToken,
    st.text("<|>a ", min_size=1, max_size=3),
    lstrip=SELDOM,
    rstrip=SELDOM,
    single_word=SELDOM,
    normalized=SELDOM,
    special=st.booleans(),
)


@example(  # the longer one is a word of its own, or nothing is found in its place
    tokens=[
        AddedToken("<", normalized=False),
        AddedToken(">", normalized=False),
        AddedToken(">a", normalized=False, single_word=True),
    ],
    text="<<<<<<<<<<<<<<<<a>a<",
)
@given(
    tokens=st.lists(TOKEN, min_size=2, max_size=5, unique_by=lambda token: token.content),
    text=st.text("<|>a ", min_size=20, max_size=60),
)
@settings(max_examples=100, deadline=None)
def test_tokens_that_run_into_each_other_change_no_id(tokens: list[AddedToken], text: str) -> None:
    made = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.add_tokens(tokens)
    fast = PreTrainedTokenizerFast(tokenizer_object=made)
    try:
        encoder = PromptEncoder(fast, " ".join(t.content for t in tokens), least_piece=1)
        expected = whole(fast, text)
    except BaseException as error:  # tokenizers itself panics for some that strip what is before
        assume("Panic" not in type(error).__name__)
        raise
    assert encoder.encode(text)[0] == expected


def test_a_tokenizer_in_python_gets_the_whole_text() -> None:
    from mlx_lm.tokenizer_utils import NewlineTokenizer

    made = byte_level(prefix=False)
    made.add_tokens([AddedToken("<n>", normalized=False), AddedToken(CUTS[0], normalized=False)])
    text = conversation(4)
    for each in (NewlineTokenizer(tokenizer_object=made), ByT5Tokenizer()):
        encoder = PromptEncoder(each, WRITTEN, least_piece=1)
        assert encoder.encode(text, scope="")[0] == whole(each, text)


def test_a_vocabulary_without_all_characters_is_served() -> None:
    made = Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>"))  # which it does not have
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=made)
    fast.add_special_tokens({"additional_special_tokens": [CUTS[0]]})
    with pytest.raises(Exception, match="UNK"):
        whole(fast, "b")
    text = "a<|turn|>a a"
    assert PromptEncoder(fast, WRITTEN, least_piece=1).encode(text)[0] == whole(fast, text)


def test_a_limit_in_the_tokenizers_file_is_not_kept_to() -> None:
    made = byte_level(prefix=False)
    made.enable_truncation(4)
    made.enable_padding(length=16)
    fast = with_tokens(made)
    text = conversation(4)
    encoder = PromptEncoder(fast, WRITTEN)
    assert encoder.encode(text)[0] == whole(fast, text)


def test_threads_do_not_disturb_each_other(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = PromptEncoder(tokenizer, WRITTEN, max_bytes=20_000)
    texts = [conversation(6, begin=f"{i % 3} ") for i in range(24)]
    expected = [whole(tokenizer, text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: encoder.encode(text, scope="")[0], texts))
    assert found == expected


# --- once only ------------------------------------------------------------------------------


def test_what_did_not_change_is_not_tokenised_again(tokenizer: PreTrainedTokenizerFast) -> None:
    counted = Counted(tokenizer)
    encoder = PromptEncoder(counted, WRITTEN)
    before = counted.characters
    encoder.encode(conversation(100), scope="")
    first = counted.characters - before
    assert first >= len(conversation(100))
    for turns in range(101, 105):
        before = counted.characters
        encoder.encode(conversation(turns), scope="")
        assert counted.characters - before < first / 20


def test_a_change_at_the_beginning_costs_the_beginning(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    counted = Counted(tokenizer)
    encoder = PromptEncoder(counted, WRITTEN)
    long = f"<|turn|>user\n{CORPUS[0] * 40}<|end|>\n" + conversation(100)
    encoder.encode("It is noon. " + long, scope="")
    before = counted.characters
    encoder.encode("It is one o'clock. " + long, scope="")
    assert counted.characters - before < len(long) / 10


@pytest.mark.parametrize("scope", ["another key", None])
def test_scopes_share_nothing(scope: str | None) -> None:
    counted = Counted(with_tokens(byte_level(prefix=False)))
    encoder = PromptEncoder(counted, WRITTEN)
    text = conversation(20)
    for mine in ("a key", scope):
        before = counted.characters
        encoder.encode(text, scope=mine)
        assert counted.characters - before >= len(text)


async def test_what_is_kept_belongs_to_the_one_who_asks() -> None:
    scopes: list[str | None] = []

    class Codec(ScriptedCodec):
        def encode_chat(self, prompt: ChatPrompt, *, scope: str | None = None) -> Encoded:
            scopes.append(scope)
            return super().encode_chat(prompt, scope=scope)

    class Factory(ScriptedFactory):
        def codec(self, card: ModelCard) -> ScriptedCodec:
            return Codec()

    prompt = ChatPrompt((Message("user", "Hello"),))
    async with MLXModelManager(engine="scripted", factory=Factory()) as manager:
        for scope in ("ann", "ben"):
            request = GenerationRequest(prompt, model="scripted", cache_scope=scope)
            await collect(manager.generate(request))
        await manager.atokenize("scripted", prompt)
    assert scopes == ["ann", "ben", None]


def test_only_so_much_is_kept() -> None:
    counted = Counted(with_tokens(byte_level(prefix=False)))
    encoder = PromptEncoder(counted, WRITTEN, max_bytes=100_000)
    texts = [conversation(20).replace("<|turn|>", f"<|turn|>{index}") for index in range(20)]
    for text in texts:
        encoder.encode(text, scope="")
    old, *_, new = texts
    before = counted.characters
    encoder.encode(new, scope="")
    assert counted.characters == before
    encoder.encode(old, scope="")
    assert counted.characters - before > 0.9 * len(old)


# --- boundaries -----------------------------------------------------------------------------


@given(parts=TEXTS, marks=st.lists(st.integers(0, 400), max_size=4))
@settings(max_examples=100, deadline=None)
def test_boundaries_are_before_their_marks(
    tokenizer: PreTrainedTokenizerFast,
    encoders: list[PromptEncoder],
    parts: list[str],
    marks: list[int],
) -> None:
    text = "".join(parts)
    marks = [min(mark, len(text)) for mark in marks]
    places = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).offsets
    for encoder in encoders:
        ids, boundaries = encoder.encode(text, marks, scope="")
        assert list(boundaries) == sorted(set(boundaries))
        for boundary in boundaries:
            assert 0 < boundary < len(ids)
            assert any(places[boundary - 1][0] < mark for mark in marks)


def codec(folder: Path, template: str | None = None) -> MLXCodec:
    folder.mkdir(exist_ok=True)
    options = {} if template is None else {"chat_template": template}
    write_tokenizer(folder, **options)  # type: ignore[arg-type]
    (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')
    return MLXCodec(ModelCard(id="m", path=folder, kind=ModelKind.TEXT, architecture=""))


def split(made: MLXCodec, prompt: ChatPrompt) -> list[str]:
    """The text between the boundaries."""
    encoded = made.encode_chat(prompt)
    places = [0, *encoded.boundaries, len(encoded.ids)]
    return [made.decode(encoded.ids[a:b]) for a, b in pairwise(places)]


SYSTEM, ASKED = Message("system", "Be brief."), Message("user", "user: Be brief.")


def test_boundaries_are_before_the_user_and_before_the_answer(tmp_path: Path) -> None:
    made = codec(tmp_path)
    turns = (SYSTEM, ASKED, Message("assistant", "Yes?"), Message("user", "Well."))
    head, middle, end = split(made, ChatPrompt(turns))
    assert head == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert middle.startswith("user: Be brief.<|im_end|>")
    assert middle.endswith("Well.<|im_end|>\n")
    assert end == "<|im_start|>assistant\n"
    parts = replace_content(turns)
    assert split(made, ChatPrompt(parts)) == [head, middle, end]


def replace_content(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(Message(turn.role, (TextPart(str(turn.content)),)) for turn in turns)


def test_boundaries_follow_tools_and_settings(tmp_path: Path) -> None:
    made = codec(tmp_path)
    tools = (Tool("look", "user: Be brief."),)
    prompt = ChatPrompt((SYSTEM, ASKED), tools, template_kwargs={"enable_thinking": False})
    head, middle, end = split(made, prompt)
    assert head.endswith("</tool_call>.<|im_end|>\n<|im_start|>user\n")
    assert middle == "user: Be brief.<|im_end|>\n"
    assert end == "<|im_start|>assistant\n<think>\n\n</think>\n\n"


def test_a_place_that_cannot_be_told_is_no_boundary(tmp_path: Path) -> None:
    made = codec(tmp_path / "usual")
    assert made.encode_chat(ChatPrompt((SYSTEM,))).boundaries == ()
    needs_three = "{% if messages | length < 3 %}{{ raise_exception('few') }}{% endif %}"
    made = codec(tmp_path / "long", needs_three + "{{ messages[2].content }}, please")
    prompt = ChatPrompt((SYSTEM, ASKED, Message("assistant", "Yes")))
    assert split(made, prompt) == ["Yes, please"]
    # What is written before the user's message depends on how many there are.
    made = codec(tmp_path / "count", "{{ messages | length }}: {{ messages[1].content }}")
    assert split(made, prompt) == ["3: user: Be brief."]


def test_half_a_character_is_the_clients_mistake(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="Unicode"):
        codec(tmp_path).encode_chat(ChatPrompt((Message("user", "half \ud800"),)))


# --- a server meanwhile ---------------------------------------------------------------------


async def test_the_server_answers_while_it_reads_a_long_prompt(tiny_server: ServerProcess) -> None:
    words = "def add(first, second): return first + second  # the sum\n" * 20
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"{i} {words}"} for i in range(400)]
    body: dict[str, Any] = {"model": "tiny/llama", "messages": turns[:1]}
    async with httpx.AsyncClient(base_url=tiny_server.base, timeout=60.0) as client:
        assert (await client.post("/v1/tokenize", json=body)).status_code == 200
        begun = time.perf_counter()
        body["messages"] = turns
        reading = asyncio.create_task(client.post("/v1/tokenize", json=body))
        longest, count = 0.0, 0
        while not reading.done():
            asked = time.perf_counter()
            await client.get("/health")
            longest, count = max(longest, time.perf_counter() - asked), count + 1
        took = time.perf_counter() - begun
        answer = (await reading).json()
    assert answer["count"] > 100_000
    assert count > 10
    assert longest < took / 2
