"""The engine `openai`, against a real HTTP server that is slow, fails and answers nonsense."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Prompt, Sampling
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.plugins import RunPlugins

KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def opened():
    """Open the engine with options; all are closed in the end."""
    engines = []

    def open_engine(server=None, *, n=1, config=None, sampling=None, **options):
        registry = Registry.discover()
        if server is not None:
            options["base_url"] = server.base_url
        engine = registry.resolve("engine", PluginChoice(name="openai", options=options), "--engine").bound
        drawn = {"max_new_tokens": 32, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 42} | (sampling or {})
        args = Arguments(SampleConfig.model_validate({"model": "judge-7b", **(config or {})}), RunPlugins(registry))
        engine.open(args, Sampling(num_return_sequences=n, **drawn))
        engines.append(engine)
        return engine

    yield open_engine
    for engine in engines:
        engine.close()


def prompts(*texts):
    return [Prompt(id=text, messages=[{"role": "user", "content": text}]) for text in texts]


def answers(engine, *texts):
    """What became of each prompt, by its text."""
    return {answered.id: answered for answered in engine.generate(prompts(*texts))}


def only(engine, text="2 + 2?"):
    """The one candidate of one prompt."""
    (answered,) = engine.generate(prompts(text))
    assert not answered.failure
    (completion,) = answered.completions
    return completion


def failure(engine, text="2 + 2?"):
    (answered,) = engine.generate(prompts(text))
    assert not answered.completions
    assert "\n" not in answered.failure
    return answered.failure


# ---- what is asked, and what comes of the answer


def test_each_prompt_gets_its_candidates_in_order(openai_server, opened):
    server = openai_server(lambda request: f"{request.text}/{request.body['seed']}")
    engine = opened(server, n=3)
    got = answers(engine, *(f"question {i}" for i in range(20)))
    assert len(got) == 20
    for text, answered in got.items():
        seeds = [int(completion.text.rpartition("/")[2]) for completion in answered.completions]
        assert [completion.text for completion in answered.completions] == [f"{text}/{seed}" for seed in seeds]
        assert len(set(seeds)) == 3 and all(0 <= seed < 2**31 for seed in seeds)
    assert len(server.requests) == 60
    again = answers(engine, "question 7", "another")  # the same seeds, whatever is sampled beside it
    assert again["question 7"].completions == got["question 7"].completions


def test_a_request_says_how_to_sample(openai_server, opened, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = openai_server(lambda request: "4")
    only(opened(server))
    request = server.requests[0]
    seed = request.body.pop("seed")
    assert isinstance(seed, int)
    messages = [{"role": "user", "content": "2 + 2?"}]
    assert request.body == {"model": "judge-7b", "messages": messages, "max_tokens": 32, "temperature": 1.0}
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    sampling = {"temperature": 0.0, "top_p": 0.9, "top_k": 20}
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "seed": None}
    only(opened(server, sampling=sampling, extra_body=extra, model="other"))
    assert server.requests[1].body == {
        "model": "other",
        "messages": messages,
        "max_tokens": 32,
        **sampling,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_variables_of_a_row_go_with_those_of_all_rows(openai_server, opened):
    server = openai_server(lambda request: "4")
    asked = Prompt("id", [{"role": "user", "content": "2 + 2?"}], None, {"effort": "low"})
    for extra in None, {"chat_template_kwargs": {"effort": "high", "quiet": True}}, {"chat_template_kwargs": None}:
        list(opened(server, extra_body=extra).generate([asked]))
    sent = [request.body.get("chat_template_kwargs") for request in server.requests]
    assert sent == [{"effort": "low"}, {"effort": "low", "quiet": True}, None]


def test_tools_and_their_calls_are_sent_as_the_api_wants_them(openai_server, opened):
    server = openai_server(lambda request: "12 degrees")
    function = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    messages = [
        {"role": "user", "content": "Ulm?"},
        {"role": "assistant", "tool_calls": [call, {**call, "id": "mine"}]},
        {"role": "tool", "content": "12"},
        {"role": "tool", "content": "13"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "14"},
    ]
    tools = [function, json.dumps({"type": "function", "function": function})]
    list(opened(server).generate([Prompt("row", messages, tools)]))
    sent = server.requests[0].body
    assert sent["tools"] == [{"type": "function", "function": function}] * 2
    first, second = sent["messages"][1]["tool_calls"]
    assert json.loads(first["function"]["arguments"]) == {"city": "Ulm"}
    assert [message["tool_call_id"] for message in sent["messages"] if message["role"] == "tool"][:2] == [
        first["id"],
        second["id"],
    ]
    assert second["id"] == "mine"
    third = sent["messages"][4]["tool_calls"][0]["id"]
    assert third != first["id"] and sent["messages"][5]["tool_call_id"] == third
    assert messages[2] == {"role": "tool", "content": "12"}  # the caller's own are left alone


@pytest.mark.parametrize("tool", ["searches the web", '"search"', 3, None])
def test_tools_that_are_no_functions_fail_their_row_alone(openai_server, opened, tool):
    question = [{"role": "user", "content": "2 + 2?"}]
    asked = [Prompt("row", question, [tool]), Prompt("other", question)]
    server = openai_server(lambda request: "4")
    failed, answered = opened(server, n=2).generate(asked)
    assert failed.id == "row" and repr(tool) in failed.failure and "--tools hermes" in failed.failure
    assert [completion.text for completion in answered.completions] == ["4", "4"]


CALL = {"function": {"name": "add", "arguments": '{"a": 1}'}, "id": "x", "type": "function"}


@pytest.mark.parametrize(
    ("reply", "text", "reason"),
    [
        ({"text": "4", "finish_reason": "length"}, "4", "length"),
        ({"text": "4", "finish_reason": None}, "4", "unknown"),
        ({"text": ""}, "", "stop"),
        ({"text": "\n\n4", "message": {"reasoning_content": "\n2 and 2\n"}}, "<think>\n2 and 2\n</think>\n\n4", "stop"),
        ({"text": "4", "message": {"reasoning": "so"}}, "<think>\nso\n</think>\n\n4", "stop"),
        (
            {"text": None, "message": {"reasoning": "so and"}, "finish_reason": "length"},
            "<think>\nso and",
            "length",
        ),
        ({"text": None, "finish_reason": "length"}, "", "length"),
        ({"text": None, "finish_reason": "content_filter"}, "", "content_filter"),
        ({"text": None, "message": {"refusal": "I cannot."}}, "I cannot.", "stop"),
        (
            {"text": None, "message": {"tool_calls": [CALL, CALL]}, "finish_reason": "tool_calls"},
            '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
            '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
            "tool_calls",
        ),
        (
            {"text": "Let me see.", "message": {"tool_calls": [CALL | {"function": {"name": "f", "arguments": "{a"}}]}},
            'Let me see.\n<tool_call>\n{"name": "f", "arguments": "{a"}\n</tool_call>',
            "stop",
        ),
        (
            {"text": [{"type": "text", "text": "It is "}, {"type": "output_text", "text": "4."}, "!"]},
            "It is 4.!",
            "stop",
        ),
        (
            {
                "text": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "so"}]},
                    {"type": "text", "text": "4"},
                ]
            },
            "<think>\nso\n</think>\n\n4",
            "stop",
        ),
        ({"text": "", "message": {"refusal": "I cannot."}}, "I cannot.", "stop"),
        ({"text": "4", "message": {"refusal": None, "reasoning": "", "reasoning_details": []}}, "4", "stop"),
        ({"text": "4", "message": {"thinking": "so"}}, "<think>\nso\n</think>\n\n4", "stop"),
        (
            {"text": "4", "message": {"thinking_blocks": [{"type": "thinking", "thinking": "so", "signature": "x"}]}},
            "<think>\nso\n</think>\n\n4",
            "stop",
        ),
        (
            {
                "text": "4",
                "message": {
                    "reasoning_details": [
                        {"type": "reasoning.text", "text": "s"},
                        {"type": "reasoning.summary", "summary": "o"},
                        {"type": "reasoning.encrypted", "data": "abc"},
                    ]
                },
            },
            "<think>\nso\n</think>\n\n4",
            "stop",
        ),
        (  # the same reasoning in several places is one
            {
                "text": "4",
                "message": {"reasoning": "so", "reasoning_content": "so", "reasoning_details": [{"text": "so"}]},
            },
            "<think>\nso\n</think>\n\n4",
            "stop",
        ),
        (
            {"text": "<think>\nso\n</think>\n\n4", "message": {"reasoning_content": "so"}},
            "<think>\nso\n</think>\n\n4",
            "stop",
        ),
        ({"text": "so\n</think>\n\n4"}, "<think>\nso\n</think>\n\n4", "stop"),  # the prompt ended in the tag
        ({"text": "</think>\n\n4", "message": {"reasoning": "so"}}, "<think>\nso\n</think>\n\n4", "stop"),
        ({"text": "<think>\nso and", "finish_reason": "length"}, "<think>\nso and", "length"),
        ({"text": "", "message": {"reasoning": "so"}, "finish_reason": "max_tokens"}, "<think>\nso", "max_tokens"),
        (
            {"text": None, "message": {"function_call": CALL["function"], "tool_calls": None}},
            '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
            "stop",
        ),
        (
            {"text": "", "message": {"tool_calls": [{"function": {"name": "now", "arguments": ""}}]}},
            '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
            "stop",
        ),
        ({"text": "half \ud83d, whole \U0001f600"}, "half \ufffd, whole \U0001f600", "stop"),
    ],
)
def test_what_an_answer_becomes(openai_server, opened, reply, text, reason):
    completion = only(opened(openai_server(lambda request: reply)))
    assert (completion.text, completion.finish_reason) == (text, reason)
    completion.text.encode()


# ---- many at once


def test_as_many_requests_at_once_as_wanted_and_no_more(openai_server, opened):
    server = openai_server(lambda request: {"text": "4", "seconds": 0.05})
    engine = opened(server, n=5, concurrency=7)
    began = time.monotonic()
    assert len(answers(engine, *(f"question {i}" for i in range(14)))) == 14
    assert server.most_at_once == 7
    assert time.monotonic() - began < 70 * 0.05 / 2  # 70 requests, one by one, take 3.5 s


@pytest.mark.parametrize("close_stream", [True, False])
def test_an_answer_is_there_before_slower_ones_are(openai_server, opened, capfd, close_stream):
    server = openai_server(lambda request: {"text": "4", "seconds": 30 if request.text == "slow" else 0})
    engine = opened(server)
    stream = engine.generate(prompts("slow", "quick"))
    assert next(stream).id == "quick"
    began = time.monotonic()
    if close_stream:
        stream.close()
    engine.close()
    assert time.monotonic() - began < 3
    assert not any(capfd.readouterr())


def test_requests_go_on_while_the_caller_is_busy(openai_server, opened):
    server = openai_server(lambda request: "4")
    stream = opened(server, concurrency=1).generate(prompts(*"abcdefgh"))
    next(stream)
    deadline = time.monotonic() + 10
    while len(server.requests) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(server.requests) == 8
    assert len(list(stream)) == 7


def test_a_rate_limit_spaces_requests(openai_server, opened):
    server = openai_server(lambda request: "4")
    answers(opened(server, requests_per_minute=60 / 0.1), *"abcdef")
    times = [request.time for request in server.requests]
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) > 0.05
    assert times[-1] - times[0] > 0.45


def test_a_batch_keeps_the_connections_busy(opened):
    def at_once(n, **options):
        engine = opened(base_url="http://127.0.0.1:9/v1", n=n, **options)
        return engine.prompts_at_once(Sampling(n, 1, 1.0, 1.0, 0, 0))

    assert at_once(8) >= 64
    assert at_once(1, concurrency=100) >= 10 * 100


# ---- what fails


@pytest.mark.parametrize(
    "reply",
    [
        {"status": 429, "body": {"error": {"message": "slow down"}}},
        {"status": 429, "headers": {"Retry-After": "0.2"}, "body": ""},
        {"status": 429, "headers": {"Retry-After-Ms": "200", "Retry-After": "1"}, "body": ""},
        {"status": 500, "body": "oops"},
        {"status": 503, "body": "<html><head><title>503 Busy</title></head></html>"},
        {"drop": True, "text": "a long answer, half of which comes"},
        {"body": "<html><body>Sign in</body></html>"},
        {"body": "{truncated"},
        {"body": {"error": "overloaded"}},
        {"body": {"choices": []}},
        {"body": {"choices": None}},
        {"body": {"choices": [{"message": None}]}},
        {"body": [1, 2]},
        {"text": None},
        {"message": {"content": {"no": "text"}}},
        {"seconds": 30, "text": "too late"},
    ],
)
def test_what_passes_is_tried_again(openai_server, opened, reply):
    server = openai_server(lambda request: reply if request.number == 0 else "4")
    assert only(opened(server, timeout=1)).text == "4"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"status": 500, "body": {"error": {"message": "out\nof memory"}}}, "HTTP 500 after 3 tries: out of memory"),
        (
            {"status": 502, "body": "<html><title>Bad &amp; Gateway</title>"},
            "HTTP 502 after 3 tries: a web page titled",
        ),
        ({"status": 500, "body": {"detail": "no"}}, "HTTP 500 after 3 tries: no"),
        ({"status": 429, "body": ""}, "HTTP 429 after 3 tries: Too Many Requests"),
        ({"body": "x" * 100_000}, "malformed answer after 3 tries: expected a chat completion, found xxxx"),
        (
            {"body": {"error": {"message": "no slot", "code": 502}}},
            "the server reports an error after 3 tries: no slot",
        ),
        (
            {"text": "half", "finish_reason": "abort"},
            "the server reports an error after 3 tries: the answer broke off (finish_reason 'abort')",
        ),
        (
            {"body": 'data: {"choices": [{"delta": {"content": "4"}}]}\n\n'},
            "malformed answer after 3 tries: expected a",
        ),
        (
            {"message": {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}},
            "malformed answer after 3 tries: the content has a part of type 'image_url', which is no text",
        ),
        ({"message": {"reasoning": True}}, "malformed answer after 3 tries: the reasoning is not a text"),
        ({"text": None, "finish_reason": "tool_calls"}, "malformed answer after 3 tries: the message has no content"),
        ({"body": {"choices": []}}, "malformed answer after 3 tries: expected a chat completion, found {"),
        ({"drop": True, "text": "half of it"}, "the connection broke after 3 tries: "),
        ({"seconds": 30}, "no answer after 3 tries: nothing within 0.3 s"),
        ({"text": "it never ends", "trickle": 0.1}, "no answer after 3 tries: nothing within 0.3 s"),
    ],
)
def test_what_does_not_pass_is_reported_and_nothing_is_guessed(openai_server, opened, monkeypatch, reply, expected):
    monkeypatch.setattr("swiftplug.builtin.openai.client.FIRST_WAIT", 0.01)
    server = openai_server(lambda request: reply)
    message = failure(opened(server, max_retries=2, timeout=0.3))
    assert message.startswith(expected)
    assert len(message) < 500
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "reply",
    [
        {"status": 413, "body": "<html><title>Too large</title></html>"},
        {"status": 400, "body": {"error": {"message": "too long", "code": "context_length_exceeded"}}},
        {"body": {"error": {"message": "too long", "code": "context_length_exceeded"}}},
        {"body": {"error": {"message": "no such model", "code": 404}, "choices": []}},
    ],
)
def test_what_no_retry_can_mend_is_asked_once(openai_server, opened, reply):
    server = openai_server(lambda request: reply)
    assert failure(opened(server))
    assert len(server.requests) == 1


def test_one_row_fails_and_the_others_do_not(openai_server, opened):
    error = {"error": {"message": "maximum context length is 32 tokens", "code": "context_length_exceeded"}}
    server = openai_server(lambda request: {"status": 400, "body": error} if request.text == "long" else "4")
    got = answers(opened(server, n=2), "a", "long", "b")
    assert got["long"].failure == "HTTP 400: maximum context length is 32 tokens"
    assert not got["long"].completions
    assert [len(got[text].completions) for text in "ab"] == [2, 2]
    assert Counter(request.text for request in server.requests)["long"] <= 2  # once a candidate, never again


def test_the_other_candidates_of_a_failed_row_are_not_waited_for(openai_server, opened):
    def answer(request):
        return {"status": 400, "body": "no"} if request.number == 0 else {"seconds": 30}

    began = time.monotonic()
    assert failure(opened(openai_server(answer), n=4)).startswith("HTTP 400")
    assert time.monotonic() - began < 5


def test_waits_grow_and_a_server_that_says_how_long_is_obeyed(openai_server, opened):
    server = openai_server(lambda request: {"status": 500, "body": ""} if request.number < 2 else "4")
    only(opened(server))
    first, second = (b.time - a.time for a, b in itertools.pairwise(server.requests))
    assert 0.35 < first < 1 and 0.7 < second < 2

    def limit(request):
        return {"status": 429, "headers": {"Retry-After": "1.5"}, "body": ""} if request.number == 0 else "4"

    server = openai_server(limit)
    assert len(answers(opened(server, concurrency=1), *"abcd")) == 4
    assert server.requests[1].time - server.requests[0].time >= 1.5  # the others wait as well


def test_all_threads_wait_when_the_server_asks_one_to(openai_server, opened):
    limit = {"status": 429, "headers": {"Retry-After": "1.5"}, "body": ""}
    server = openai_server(lambda request: limit if request.number == 0 else {"text": "4", "seconds": 0.3})
    assert len(answers(opened(server, concurrency=4), *(f"question {i}" for i in range(12)))) == 12
    times = [request.time - server.requests[0].time for request in server.requests]
    assert len(times) == 13
    assert not [seconds for seconds in times if 0.25 < seconds < 1.5]  # only those that were under way before


def test_tries_end_with_the_time(openai_server, opened):
    server = openai_server(lambda request: {"status": 500, "body": ""})
    began = time.monotonic()
    assert failure(opened(server, max_retries=1000, time_limit=1)).startswith("HTTP 500 after 2 tries")
    assert time.monotonic() - began < 3


# ---- what no request can pass


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
        (402, {"error": {"message": "Insufficient Balance"}}),
        (403, "<html><title>Forbidden</title></html>"),
        (404, {"error": {"message": "The model `judge-7b` does not exist."}}),
        (400, {"error": {"message": "Use 'max_completion_tokens'", "code": "unsupported_parameter"}}),
        (429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}),
    ],
)
def test_a_refused_key_or_model_ends_the_run_at_once(openai_server, opened, monkeypatch, capfd, status, body):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = openai_server(lambda request: {"status": status, "body": body})
    engine = opened(server, n=4)
    with pytest.raises(UserError) as raised:
        answers(engine, *(f"question {i}" for i in range(100)))
    message = str(raised.value)
    assert "\n" not in message and server.base_url in message and f"HTTP {status}" in message and "judge-7b" in message
    assert KEY not in message
    assert raised.value.__cause__ is None and raised.value.__suppress_context__
    assert len(server.requests) <= 16 * 2
    engine.close()
    assert not any(capfd.readouterr())  # no thread prints its error


def test_a_key_that_is_withdrawn_ends_the_run_and_a_refused_row_does_not(openai_server, opened):
    def answer(request):
        return {"status": int(request.text), "body": ""} if request.text.isdigit() else "4"

    engine = opened(openai_server(answer))
    only(engine, "first")
    assert failure(engine, "403") == "HTTP 403: Forbidden"
    with pytest.raises(UserError, match="HTTP 401"):
        failure(engine, "401")


def test_a_server_that_asks_to_wait_till_tomorrow_ends_the_run(openai_server, opened):
    server = openai_server(lambda request: {"status": 429, "headers": {"Retry-After": "86400"}, "body": ""})
    with pytest.raises(UserError, match="asks to wait 86400 s, longer than time_limit"):
        failure(opened(server))


def test_nobody_listens(opened):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        engine = opened(base_url=f"http://127.0.0.1:{port}/v1")
        began = time.monotonic()
        with pytest.raises(UserError, match=rf"http://127\.0\.0\.1:{port}/v1, model 'judge-7b': no connection"):
            answers(engine, "a", "b")
        assert time.monotonic() - began < 5


def test_a_server_that_goes_away_ends_the_run_without_losing_a_row(openai_server, opened, monkeypatch):
    monkeypatch.setattr("swiftplug.builtin.openai.client.FIRST_WAIT", 0.01)
    server = openai_server(lambda request: "4")
    engine = opened(server, max_retries=2)
    only(engine, "first")
    server.close()
    with pytest.raises(UserError, match=r"the server is gone: .* after 3 tries.*--resume"):
        failure(engine, "second")


@pytest.mark.parametrize(
    ("options", "config", "expected"),
    [
        ({}, {}, "OPENAI_API_KEY is not set"),
        ({"base_url": "localhost:8000/v1"}, {}, "expected an address such as http://"),
        ({"base_url": "http://[::1/v1"}, {}, "expected an address such as http://"),
        ({"base_url": f"http://me:{KEY}@127.0.0.1/v1"}, {}, "must not hold a password"),
        ({"base_url": "http://127.0.0.1/v1", "extra_body": {"n": 4}}, {}, "'n' cannot be set there"),
        ({"base_url": "http://127.0.0.1/v1"}, {"model": None}, "no model"),
        ({"base_url": "http://127.0.0.1/v1"}, {"adapter": "runs/lora"}, "adapter"),
        ({"base_url": "http://127.0.0.1/v1"}, {"data": {"template": "x.jinja"}}, "data.template"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(opened, options, config, expected):
    with pytest.raises(UserError) as raised:
        opened(config=config, **options)
    assert expected in str(raised.value)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("key", ["sk-käse", "sk-a\nb"])
def test_a_key_that_cannot_be_sent_is_not_shown(opened, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY holds characters that no key has"):
        opened()


def test_the_address_may_come_from_the_environment_and_a_key_end_in_a_line_break(openai_server, opened, monkeypatch):
    server = openai_server(lambda request: "4")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    assert only(opened()).text == "4"
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_ctrl_c_ends_it_quickly_and_quietly(openai_server, tmp_path):
    server = openai_server(lambda request: {"seconds": 60})
    script = tmp_path / "sample.py"
    script.write_text(
        "import signal, sys\n"
        "from types import SimpleNamespace as Space\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it\n"
        "from swiftplug.builtin.openai.engine import OpenAIEngine\n"
        "from swiftplug.plugin.engine import Prompt, Sampling\n"
        "engine = OpenAIEngine(base_url=sys.argv[1])\n"
        "args = Space(data=Space(template=None), adapter=None, model=Space(name='m'))\n"
        "engine.open(args, Sampling(4, 8, 1.0, 1.0, 0, 0))\n"
        "try:\n"
        "    list(engine.generate([Prompt('a', [{'role': 'user', 'content': 'a'}])] * 20))\n"
        "except KeyboardInterrupt:\n"
        "    engine.close()\n"
        "    print('interrupted')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, script, server.base_url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        deadline = time.monotonic() + 60
        while server.most_at_once < 16 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.most_at_once == 16
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)
    assert time.monotonic() - began < 10


def test_no_part_of_a_key_is_left_where_a_message_is_cut_off(openai_server, opened, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for filler in range(270, 302):
        server = openai_server(lambda request, filler=filler: {"status": 400, "body": "x" * filler + KEY + "y" * 300})
        assert KEY[:4] not in failure(opened(server))


def test_arguments_nested_without_end_are_kept_as_they_are(openai_server, opened):
    call = {"type": "function", "function": {"name": "weather", "arguments": "[" * 3000}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    completion = only(opened(openai_server(lambda request: {"body": body})))
    assert "[" * 3000 in completion.text
