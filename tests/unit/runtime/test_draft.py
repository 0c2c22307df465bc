"""A draft model beside another one: the replies are those without it, whoever joins, leaves or fails."""

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import solm
from helpers.models import disturbed, tiny_model
from solm.core.errors import SolmError
from solm.runtime.batch import Batch, Row, decode
from solm.runtime.draft import Drafter, check_vocabulary
from solm.runtime.grammars import Grammar
from solm.runtime.guess import DRAFT, Drafted, Guesser, Pace
from solm.runtime.sampling import Sampler

ENDLESS = {"eos_token_id": -1}


class Fixed(Pace):
    """Passes that always take the same."""

    known = True

    def __init__(self, single: float, other: float):
        self.single, self.other = single, other

    def add(self, tokens, seconds):
        pass

    def seconds(self, tokens):
        return self.single + self.other * (tokens - 1)


def paced(lm, step: float) -> Guesser:
    """A new guesser for which a pass takes 1 and 0.1 for every further token, and one of the draft model `step`."""
    lm.guesser = Guesser()
    lm.guesser.pace, lm.guesser.draft_pace = Fixed(1.0, 0.1), Fixed(step, 0.02)
    return lm.guesser


@pytest.fixture
def same_lm(cpu_lm):
    """A draft model that is the model itself."""
    cpu_lm.draft = cpu_lm.with_policy(None)
    return cpu_lm


@pytest.fixture
def other_lm(cpu_lm):
    """A draft model that agrees about as often as not."""
    model = disturbed(tiny_model("llama", torch.float32))
    cpu_lm.draft = solm.attach(model, tokenizer=cpu_lm.tokenizer, backend="cpu", precision="int8")
    return cpu_lm


def ids(seed: int, length: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 259, (1, length))


def row(lm, seed: int, longest: int, guess: int | None = None, **options) -> Row:
    sampler = Sampler.of(lm, ids(seed), seed, ENDLESS | options)
    made = Row(ids(seed)[0], lm.policy("dense"), (1.0, 1.0, 1.0), longest, sampler)
    made.guess = guess
    return made


def plain(lm, seed: int, longest: int, **options) -> list[int]:
    return lm.generate(ids(seed), guess="off", max_new_tokens=longest, seed=seed, **ENDLESS, **options).trace.ids


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}, {"temperature": 1.0, "top_k": 0}])
def test_a_draft_like_the_model_is_accepted_nearly_always(same_lm, sampling):
    found = same_lm.generate(ids(1), guess=5, max_new_tokens=120, seed=3, **ENDLESS, **sampling)
    assert (
        found.trace.ids
        == same_lm.generate(ids(1), guess="off", max_new_tokens=120, seed=3, **ENDLESS, **sampling).trace.ids
    )
    guessed, accepted = found.trace.guesses[DRAFT]
    assert accepted >= 0.95 * guessed > 80
    assert found.trace.per_pass > 5


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}, {"temperature": 0.8, "presence_penalty": 0.4}])
def test_replies_are_those_without_a_draft(other_lm, sampling):
    counts = Counter()
    paced(other_lm, 0.1)
    for seed in range(3):
        for longest in (1, 2, 90):
            for guess in ("auto", 1, 4, 15):
                found = other_lm.generate(
                    ids(seed), guess=guess, max_new_tokens=longest, seed=seed, **ENDLESS, **sampling
                )
                assert found.trace.ids == plain(other_lm, seed, longest, **sampling)
                for source, (guessed, accepted) in found.trace.guesses.items():
                    counts.update({source, f"{source} guessed"} if guessed else ())
                    counts["some"] += 0 < accepted < guessed
    assert counts[DRAFT] >= 10
    assert counts["some"] > 5


def test_ends_of_many_kinds_inside_a_guess(other_lm):
    grammar = Grammar.regex("[a-z]{3,40}[0-9]{4}")
    for options in (
        {"stop_strings": ["a", "e"]},
        {"eos_token_id": list(range(40))},
        {"grammar": grammar},
        {"grammar": grammar, "temperature": 0.8},
    ):
        options = {"max_new_tokens": 80, "eos_token_id": -1, **options}
        found, expected = (other_lm.generate(ids(1), guess=guess, **options) for guess in (15, "off"))
        assert found.trace.ids == expected.trace.ids
        assert found.text == expected.text


def test_a_reply_goes_to_the_end_of_the_context(other_lm):
    length = other_lm.context - 40
    found, expected = (
        other_lm.generate(ids(1, length), guess=guess, max_new_tokens=40, **ENDLESS) for guess in (6, "off")
    )
    assert found.trace.ids == expected.trace.ids
    assert found.trace.guesses[DRAFT][0] > 0


def test_a_stream_that_is_closed_in_the_middle_leaves_no_trace(other_lm):
    stream = other_lm.stream(ids(1), guess=5, max_new_tokens=60, **ENDLESS)
    begun = [next(stream).id for _ in range(8)]
    stream.close()
    assert begun == plain(other_lm, 1, 60)[:8]
    assert other_lm.generate(ids(1), guess=5, max_new_tokens=60, **ENDLESS).trace.ids == plain(other_lm, 1, 60)


@pytest.mark.parametrize("guess", [None, 3])
def test_rows_join_and_leave_beside_others(other_lm, guess):
    """Of all lengths, greedy and drawn, some dropped in the middle, some without guesses."""
    paced(other_lm, 0.1)
    options = [{}, {"temperature": 0.8}, {}, {"temperature": 1.0, "top_k": 0}, {}, {}]
    lengths = [20 + 13 * seed for seed in range(6)]
    rows = [
        row(other_lm, seed, longest, 0 if seed == 4 else guess, **own)
        for seed, (longest, own) in enumerate(zip(lengths, options, strict=True))
    ]
    batch, waiting, dropped = Batch[Row](other_lm), list(rows), rows[2]
    while waiting or batch.rows:
        while waiting and len(batch.rows) < 3:
            batch.read(waiting.pop(0))
        if len(dropped.ids) > 15 and dropped.reason is None:
            batch.leave(dropped)
        list(batch.step())
    for seed, each in enumerate(rows):
        expected = plain(other_lm, seed, lengths[seed], **options[seed])
        assert each.ids == expected[: len(each.ids)]
        assert len(each.ids) == lengths[seed] or each is dropped
    assert dropped.reason == "cancelled"
    assert rows[4].trace.guessed == 0
    assert guess is None or sum(each.trace.guesses[DRAFT][1] for each in rows if each.trace.guesses) > 20


def test_frequent_tokens_alone_are_guessed_where_a_text_has_few_others(same_lm, monkeypatch):
    monkeypatch.setattr("solm.runtime.draft._COMMON", 200)
    for rare in (3, 30):
        prompt = np.concatenate([ids(1, 60) % 190 + 3, np.full((1, rare), 230)], 1)
        made = Row(prompt[0], same_lm.policy("dense"), (1.0,) * 3, 80, Sampler.of(same_lm, prompt, 1, ENDLESS))
        made.ids.append(7)
        steps = zip(range(40), Drafter(same_lm.draft, same_lm).draft([made]), strict=False)
        guessed = [step.found[made][0] for _, step in steps]
        assert (max(guessed) >= 200) == (rare == 30)
        found, expected = (
            same_lm.generate(prompt, guess=guess, max_new_tokens=80, **ENDLESS).trace for guess in (5, "off")
        )
        assert found.ids == expected.ids


def test_a_draft_that_was_not_asked_for_a_while_is_brought_up_to_date(same_lm):
    """Its session then holds what the larger model's does, whatever was read in between."""
    drafter, sampler = Drafter(same_lm.draft, same_lm), Sampler.of(same_lm, ids(0), 0, ENDLESS)
    expected = [plain(same_lm, seed, 80) for seed in range(2)]
    rows = [Row(ids(seed)[0], same_lm.policy("dense"), (1.0,) * 3, 80, sampler) for seed in range(2)]
    for lengths in ((1, 1), (2, 40), (45, 41), (45, 41), (45, 60), (70, 61)):
        for each, known, length in zip(rows, expected, lengths, strict=True):
            each.ids[:] = known[:length]
        asked = 1 if lengths == (2, 40) else 2
        for number, step in zip(range(4), drafter.draft(rows[:asked]), strict=False):
            for each, known in zip(rows[:asked], expected, strict=False):
                assert step.found[each][0] == known[len(each.ids) + number]
                assert 0 < step.found[each][1] <= 1
        # What it was wrong about is forgotten.
        drafter._known[0][1:2] = [7]
    assert drafter.behind(rows[0]) == 0
    rows[0].ids += expected[0][70:73]
    assert drafter.behind(rows[0]) == 2  # the first one is what it expected
    drafter.leave(rows[0])
    assert drafter.behind(rows[0]) == 103


def test_a_draft_that_fails_is_told_once_and_the_reply_goes_on(other_lm, monkeypatch, caplog):
    calls = []
    step = type(other_lm.session()).step

    def failing(session, *given, **options):
        if session.engine is other_lm.draft.backend:
            calls.append(0)
            if len(calls) == 4:
                raise MemoryError("no memory is left")
        return step(session, *given, **options)

    monkeypatch.setattr(type(other_lm.session()), "step", failing)
    with caplog.at_level(logging.WARNING):
        found = other_lm.generate(ids(1), guess=3, max_new_tokens=60, **ENDLESS)
    assert found.trace.ids == plain(other_lm, 1, 60)
    assert len(calls) == 4
    assert [record.message for record in caplog.records if "draft" in record.message] == [
        f"the draft model {other_lm.draft.name} failed, and replies go on without it: no memory is left"
    ]
    assert other_lm.generate(ids(1), guess=3, max_new_tokens=9, **ENDLESS).trace.guesses[DRAFT][0] > 0


def test_the_draft_is_asked_where_it_pays(same_lm):
    """By what its steps take and how often it is right, which later replies know from earlier ones."""
    guesser = paced(same_lm, 0.2)
    first, second = (same_lm.generate(ids(1), max_new_tokens=80, **ENDLESS).trace for _ in range(2))
    assert first.per_pass > 3
    assert second.per_pass > first.per_pass
    assert same_lm.with_policy(None).guesser is guesser
    paced(same_lm, 1.2)
    assert DRAFT not in same_lm.generate(ids(1), max_new_tokens=60, **ENDLESS).trace.guesses


def test_the_draft_is_asked_no_more_where_it_is_wrong(other_lm):
    other_lm.draft = solm.attach(
        tiny_model("llama", torch.float32, num_hidden_layers=1), tokenizer=other_lm.tokenizer, backend="cpu",
        precision="int8",
    )  # fmt: skip
    paced(other_lm, 0.2)
    traces = [other_lm.generate(ids(1), max_new_tokens=100, **ENDLESS).trace for _ in range(4)]
    assert traces[0].guesses[DRAFT][0] > 5 * traces[-1].guesses.get(DRAFT, [0])[0]


class Text:
    """A reply, to be told from others."""

    sources, most, guess, left, drawn, drafting = (), 5, None, 50, False, True


class Certain:
    """A draft model that gives its next tokens this probability. asked: how often it was."""

    weight = 0.2

    def __init__(self, unread=1):
        self.asked, self.probability, self.unread = 0, 0.0, unread

    def behind(self, row):
        return self.unread

    def draft(self, rows):
        self.asked += 1
        while True:
            yield Drafted(dict.fromkeys(rows, (7, self.probability)), len(rows), 0.2)


def test_another_reply_is_tried_anew():
    """One reply that the draft model cannot guess says little about the next one."""
    draft, guesser = Certain(), Guesser()
    guesser.pace, guesser.draft_pace = Fixed(1.0, 0.1), Fixed(0.2, 0.02)

    def passes(probability, accepts):
        draft.asked, draft.probability, text = 0, probability, Text()
        for _ in range(20):
            (guess,) = guesser.choose([text], draft)
            guesser.learn(text, guess, len(guess.tokens) if accepts else 0)
        return draft.asked

    assert passes(0.3, accepts=False) < 10
    assert passes(0.99, accepts=True) == 20


def test_a_long_text_is_read_when_guesses_were_missed_for_a_while():
    passes, guesser = {}, Guesser()
    guesser.pace, guesser.draft_pace = Fixed(1.0, 0.1), Fixed(0.2, 0.02)
    for unread in (100, 1000, 2000):
        draft, text = Certain(unread), Text()
        draft.probability, text.left, passes[unread] = 0.9, 500, 0
        while not draft.asked and passes[unread] < 100:
            guesser.choose([text], draft)
            passes[unread] += 1
    assert passes[100] == 1
    assert 1 < passes[1000] < passes[2000] < 100


def test_torch_drafts_where_a_number_is_asked_for(tiny_lm, byte_tokenizer):
    with solm.attach(tiny_model("llama", torch.float32), tokenizer=byte_tokenizer) as draft:
        tiny_lm.draft = draft
        rows = [row(tiny_lm, seed, 25 + seed, 4) for seed in range(3)]
        list(decode(tiny_lm, rows, 2))
        guessed, accepted = map(sum, zip(*(each.trace.guesses[DRAFT] for each in rows), strict=True))
        assert accepted > 0.9 * guessed > 0
        tiny_lm.draft = None


def test_another_vocabulary_is_refused(byte_tokenizer):
    class Other:
        def __init__(self, tokens: dict[str, int]):
            self.tokens, self.backend_tokenizer = tokens, self

        def get_vocab(self, with_added_tokens: bool) -> dict[str, int]:
            return self.tokens

    own = byte_tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
    check_vocabulary(byte_tokenizer, byte_tokenizer, "draft.gguf")
    check_vocabulary(Other(own | {"<padding>": len(own)}), byte_tokenizer, "draft.gguf")
    for wrong in (own | {"</s>": 1, "<s>": 2}, {token: number for token, number in own.items() if number < 100}):
        with pytest.raises(SolmError, match=r"draft\.gguf has another vocabulary than the model"):
            check_vocabulary(Other(wrong), byte_tokenizer, "draft.gguf")
    with pytest.raises(SolmError, match="tokenizers package"):
        check_vocabulary(object(), byte_tokenizer, "draft.gguf")


def test_load_takes_a_draft_and_refuses_what_is_none(tiny_folder, tmp_path, monkeypatch):
    options = {"backend": "cpu", "precision": "int8"}
    with solm.load(tiny_folder, draft=tiny_folder, **options) as lm:
        assert lm.draft.name == "tiny"
        assert lm.draft.backend.precision == "int4"
        found = lm.generate(ids(1), guess=4, max_new_tokens=20, **ENDLESS)
        assert found.trace.guesses[DRAFT][1] > 0
        assert found.as_dict()["guesses"][DRAFT]["accepted"] == found.trace.accepted
    with pytest.raises(SolmError, match=r"missing\.gguf") as caught:
        solm.load(tiny_folder, draft=tmp_path / "missing.gguf", **options)
    assert caught.value.argument == "draft"
    monkeypatch.setattr("solm.runtime.load.free_memory", lambda: 10_000)
    with pytest.raises(SolmError, match="of memory are left beside the model") as caught:
        solm.load(tiny_folder, draft=tiny_folder, **options)
    assert caught.value.argument == "draft"


def test_threads_share_what_is_learned(other_lm):
    """Every one has its own batch and draft session; the replies are those of each alone."""
    paced(other_lm, 0.1)
    expected = [plain(other_lm, seed, 50) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda seed: other_lm.generate(ids(seed), max_new_tokens=50, **ENDLESS).trace, range(6)))
    assert [trace.ids for trace in found] == expected
    assert sum(trace.guesses.get(DRAFT, [0])[0] for trace in found) > 0


def test_long_prompts_are_read_in_parts_and_kept_for_later_ones(same_lm, monkeypatch):
    """Between the parts other rows go on."""
    monkeypatch.setattr("solm.runtime.draft._CHUNK", 32)
    read = []
    prefill = type(same_lm.session()).prefill

    def counted(session, tokens, *given):
        read.append(tokens.shape[1])
        return prefill(session, tokens, *given)

    long = ids(1, 150)
    expected = same_lm.generate(long, guess="off", max_new_tokens=40, **ENDLESS).trace.ids
    monkeypatch.setattr(type(same_lm.session()), "prefill", counted)
    for number in range(2):
        rows = [row(same_lm, 0, 40, 3)]
        rows.append(Row(long[0], rows[0].policy, (1.0,) * 3, 40, Sampler.of(same_lm, long, 1, ENDLESS)))
        rows[1].guess = 3
        read.clear()
        list(decode(same_lm, rows, 2))
        assert rows[1].ids == expected
        assert all(each.trace.guesses[DRAFT][1] > 10 for each in rows)
        parts = [count for count in read if count <= 32]
        assert max(count for count in read if count < 150) <= 32
        assert len(parts) >= 5 if number == 0 else sum(parts) < 100, "most was kept"
