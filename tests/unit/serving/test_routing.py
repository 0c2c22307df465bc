"""Which replica a request goes to."""

import json

from solm.serving.routing import LENGTH, beginning, in_order

LOADS = {0: 0, 1: 0, 2: 0}


def body(**asked):
    return json.dumps(asked).encode()


def chat(*turns, **more):
    return body(messages=[{"role": role, "content": content} for role, content in turns], **more)


def test_later_turns_of_a_conversation_begin_alike():
    first = chat(("system", "Be brief."), ("user", "Hello"), model="a")
    later = chat(("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", "More"), max_tokens=3)
    other = chat(("system", "Be brief."), ("user", "Good evening"))
    assert beginning(first) == beginning(later) != beginning(other)
    long = "You are an assistant. " * 100
    assert beginning(chat(("system", long), ("user", "a"))) == beginning(chat(("system", long), ("user", "b")))
    assert len(beginning(chat(("system", long), ("user", "a")))) == LENGTH


def test_prompts_and_inputs_have_beginnings_too():
    assert beginning(body(prompt="a" * 5000)) == beginning(body(prompt="a" * 6000)) != beginning(body(prompt="b"))
    assert beginning(body(prompt=[5] * 5000)) == beginning(body(prompt=[5] * 6000))
    one = beginning(body(input="Hello", instructions="Be brief."))
    assert one != beginning(body(input="Hello", instructions="Be verbose."))
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    assert beginning(body(input=turns)) == beginning(body(input=turns[:1]))


def test_what_is_no_such_request_has_none():
    for other in (b"", b"{", b"[1]", b"\xff", b"[" * 100_000, body(model="a"), body(messages=[])):
        assert beginning(other) is None
    assert beginning(body(messages=[0, None])), "for the replica to refuse"


def test_a_beginning_goes_to_one_replica_and_beginnings_are_shared_out():
    firsts = [in_order(f"{number}", LOADS)[0] for number in range(300)]
    assert firsts == [in_order(f"{number}", LOADS)[0] for number in range(300)]
    assert all(60 < firsts.count(number) < 140 for number in LOADS)


def test_few_beginnings_move_where_a_replica_is_lost():
    before = [in_order(f"{number}", LOADS)[0] for number in range(300)]
    after = [in_order(f"{number}", {0: 0, 2: 0})[0] for number in range(300)]
    assert all(new == old for new, old in zip(after, before, strict=True) if old != 1)


def test_a_replica_gets_no_more_than_its_bounded_share_for_the_sake_of_a_beginning():
    loads = dict(LOADS)
    for _ in range(30):
        loads[in_order("the same", loads)[0]] += 1
    assert max(loads.values()) <= 14  # 1.25 times 31 / 3
    assert min(loads.values()) >= 7


def test_requests_without_a_beginning_go_where_least_is_to_do():
    assert in_order(None, {0: 2, 1: 0, 2: 1}) == [1, 2, 0]
    assert sorted(in_order("begins", {0: 2, 1: 0, 2: 1})) == [0, 1, 2]
    assert in_order("begins", {}) == in_order(None, {}) == []
