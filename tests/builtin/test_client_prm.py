"""The PRM `client`: a judge model behind a real HTTP server."""

import json
import socket

import pytest

from swiftplug.errors import UserError
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.plugin.rewards import InferRequest, Unscored

KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("swiftplug.builtin.openai.client.FIRST_WAIT", 0.01)


def judge(server=None, **options):
    if server is not None:
        options["base_url"] = server.base_url
    choice = PluginChoice(name="client", options={"model": "judge-7b", **options})
    return Registry.discover().resolve("prm", choice, "--prm").bound


def asked(question="2 + 2?", answer="It is 4."):
    return InferRequest([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def scores(prm, requests, ground_truths=None):
    return prm(requests, ground_truths=ground_truths or [None] * len(requests))


@pytest.mark.parametrize(
    ("reply", "reward"),
    [
        ('{"scores": [1, 0.5, 0]}', [1.0, 0.5, 0.0]),
        ('{"score": 0.25}', 0.25),
        ("[0.5, 1]", [0.5, 1.0]),
        (" 0.75\n", 0.75),
        ('```json\n{"scores": [0.5]}\n```', [0.5]),
        ("The steps:\n```\n[1, 0]\n```\nas I see it.", [1.0, 0.0]),
        ('Step [1] is {right}. So: {"scores": [0.5, 0.25]}', [0.5, 0.25]),
        ('First I thought {"scores": [0, 0]}, but it is {"scores": [1, 1], "why": {"a": 1}}.', [1.0, 1.0]),
        ('<think>\n{"scores": [0]}?\n</think>\n\n{"scores": [1]}', [1.0]),
    ],
)
def test_replies_that_hold_scores(openai_server, reply, reward):
    server = openai_server(lambda request: reply)
    assert scores(judge(server), [asked()]) == [reward]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        "I find it good.",
        "Step [1] is right.",
        '{"scores": []}',
        '{"scores": [1, "good"]}',
        '{"scores": [true]}',
        "[" * 3000,
        '{"a":' * 3000,
        '{"score": 1' + "0" * 400 + "}",
        '{"scores": [0.5, 1.5]}',
        '{"scores": [-0.1]}',
        '{"scores": [NaN]}',
        '{"score": 7}',
        '{"scores": [0.5',
        "true",
        "",
        "<think>\nhm, [0.5]",
        {"text": 'Perhaps {"scores": [1]}, but step 2', "finish_reason": "length"},
        {"text": "", "message": {"refusal": "The judge gave nothing."}},
    ],
)
def test_replies_without_scores_are_asked_again_and_never_guessed(openai_server, reply):
    server = openai_server(lambda request: reply if request.number < 2 else "[1]")
    assert scores(judge(server), [asked()]) == [[1.0]]
    assert len(server.requests) == 3
    server = openai_server(lambda request: reply)
    (unscored,) = scores(judge(server, max_retries=1), [asked()])
    assert isinstance(unscored, Unscored)
    assert unscored.reason.startswith("malformed answer after 2 tries: the judge gave ")
    assert "\n" not in unscored.reason and len(unscored.reason) < 500


def test_one_request_for_each_answer_in_order_and_many_at_once(openai_server):
    def answer(request):
        return {"text": json.dumps([int(request.text.partition("<<")[2].partition(">>")[0]) / 100]), "seconds": 0.05}

    server = openai_server(answer)
    prm = judge(server, concurrency=10)
    assert scores(prm, [asked(answer=f"<<{i}>>") for i in range(50)]) == [[i / 100] for i in range(50)]
    assert server.most_at_once == 10
    assert scores(prm, []) == []


def test_it_can_be_called_several_times(openai_server):
    prm = judge(openai_server(lambda request: "[1]"))
    for _ in range(3):
        assert scores(prm, [asked()] * 4) == [[1.0]] * 4


def test_the_judge_sees_question_answer_and_reference(openai_server):
    server = openai_server(lambda request: "[1]")
    tricky = asked("What is {answer}? {x}", r"\boxed{4}, {reference} and {question}")
    scores(judge(server, prompt='Q: {question} A: {answer} R: {reference} {"s": [{0}]}'), [tricky], [4])
    expected = r'Q: What is {answer}? {x} A: \boxed{4}, {reference} and {question} R: 4 {"s": [{0}]}'
    assert server.requests[0].body == {
        "model": "judge-7b",
        "messages": [{"role": "user", "content": expected}],
        "temperature": 0.0,
    }
    request = InferRequest(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
            {"role": "assistant", "content": "4"},
        ]
    )
    scores(judge(server, temperature=0.5, extra_body={"max_tokens": 99}), [request])
    sent = server.requests[1].body
    text = sent["messages"][0]["content"]
    assert "system:\nBe brief.\n\nuser:\n2 + 2?" in text and "(there is none)" in text and "<answer>\n4\n" in text
    assert (sent["temperature"], sent["max_tokens"]) == (0.5, 99)


def test_a_failing_judge_leaves_only_what_it_failed_at_unscored(openai_server):
    server = openai_server(lambda request: {"status": 500, "body": "oops"} if "bad" in request.text else "[1]")
    got = scores(judge(server, max_retries=2), [asked(), asked(answer="bad"), asked()])
    assert got == [[1.0], Unscored("HTTP 500 after 3 tries: oops"), [1.0]]


def test_a_judge_that_goes_away_leaves_answers_unscored(openai_server):
    server = openai_server(lambda request: "[1]")
    prm = judge(server, max_retries=1)
    assert scores(prm, [asked()]) == [[1.0]]
    server.close()
    (unscored,) = scores(prm, [asked()])
    assert isinstance(unscored, Unscored) and unscored.reason.startswith("no connection after 2 tries")


def test_a_refused_key_ends_the_run_and_is_shown_nowhere(openai_server, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = openai_server(lambda request: {"status": 401, "body": {"error": {"message": f"bad key {KEY}"}}})
    prm = judge(server)
    with pytest.raises(
        UserError, match=r"prm 'client': .* HTTP 401: bad key \*\*\* \(check OPENAI_API_KEY\)"
    ) as raised:
        scores(prm, [asked()] * 40)
    assert KEY not in str(raised.value) + repr(vars(prm))
    assert not any(capfd.readouterr())


def test_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        prm = judge(base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        with pytest.raises(UserError, match="no connection"):
            scores(prm, [asked()])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "OPENAI_API_KEY is not set"),
        ({"base_url": "http://127.0.0.1/v1", "prompt": "Score {question}!"}, "has no {answer}"),
        ({"base_url": "http://127.0.0.1/v1", "extra_body": {"messages": []}}, "'messages' cannot be set"),
        ({"base_url": "http://127.0.0.1/v1", "temperature": -1}, "option 'temperature'"),
        ({"base_url": "http://127.0.0.1/v1", "weight": 2}, "takes no option 'weight'"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_chosen(options, expected):
    with pytest.raises(UserError, match="--prm: ") as raised:
        judge(**options)
    assert expected in str(raised.value)


def test_the_judge_must_be_named():
    with pytest.raises(UserError, match="needs the option 'model'"):
        Registry.discover().resolve("prm", PluginChoice(name="client"), "--prm")
