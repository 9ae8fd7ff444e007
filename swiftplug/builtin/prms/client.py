"""A judge model behind an OpenAI-compatible server, which rewards the steps of an answer."""

import json
import re
import sys
from contextlib import suppress
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from swiftplug.builtin.openai_chat import Answer, MalformedAnswerError, plain_text
from swiftplug.builtin.openai_server import Limits, RequestFailedError, Server, Session, gather
from swiftplug.errors import UserError
from swiftplug.plugin.rewards import PRM, InferRequest, Unscored

PROMPT = """\
You check the steps of an answer to a question.

<question>
{question}
</question>

<reference_answer>
{reference}
</reference_answer>

<answer>
{answer}
</answer>

Take the answer apart into its steps, in their order: a step is a line or a sentence that states, deduces or computes \
something. Score each from 0 to 1: 1 for a step that is right and follows from the question and the steps before it, 0 \
for one that is wrong or rests on a mistake, and a number between where you are not sure. The reference answer, where \
there is one, is right, but there may be other ways to it.

Reply with one line of JSON that has one score for each step, and with nothing else:
{"scores": [1.0, 0.5, 0.0]}"""

NO_REFERENCE = "(there is none)"

_PLACE = re.compile(r"\{(question|answer|reference)\}")
_THINKING = re.compile(r"\A\s*<think>.*?(</think>|\Z)", re.DOTALL)
_FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)


class Client(PRM):
    """Lets a judge model score the steps of each answer, or the answer as a whole, from 0 to 1.

    The judge replies with JSON: `{"scores": [...]}` for the steps or `{"score": ...}` for the whole, with or without
    words around it; or, as all of its reply or of a fenced block, a bare list or number. A reply without, or with a
    score that is not from 0 to 1, is asked for again; what still has none is left unscored. The key comes from the
    environment variable OPENAI_API_KEY; a server given by `base_url` needs none.

    Args:
        model: The judge, as the server calls it.
        base_url: Its address, mostly ending in `/v1`; None for the environment's OPENAI_BASE_URL, else OpenAI's own.
        prompt: What the judge is asked; `{question}`, `{answer}` and `{reference}` stand for those, all other braces
            for themselves.
        temperature: Of its replies.
        concurrency: Requests at once.
        timeout: Seconds for one try of a request.
        max_retries: Further tries of a request that brought no score.
        time_limit: Seconds after which no further try of a request is begun.
        requests_per_minute: Tries begun in a minute, evenly; None for as many as may be.
        extra_body: Fields of every request; a null takes one away.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        prompt: str = PROMPT,
        temperature: Annotated[float, Field(ge=0)] = 0.0,
        concurrency: PositiveInt = 16,
        timeout: PositiveFloat = 120,
        max_retries: NonNegativeInt = 5,
        time_limit: PositiveFloat = 300,
        requests_per_minute: PositiveFloat | None = None,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        if "{answer}" not in prompt:
            raise UserError("option 'prompt': has no {answer}, so the judge would not see what to score")
        limits = Limits(concurrency, timeout, max_retries, time_limit, requests_per_minute)
        self._server = Server("prm 'client'", base_url, model, limits, extra_body)
        self._prompt = prompt
        self._temperature = temperature

    async def __call__(self, infer_requests: list[InferRequest], **kwargs: Any) -> list[float | list[float] | Unscored]:
        """Score answers; see `PRM.__call__`.

        Raises:
            UserError: The judge refuses the key or the model, or nobody listens at its address.
        """
        references = kwargs.get("ground_truths") or [None] * len(infer_requests)
        async with self._server.connect() as session:
            return await gather(
                self._score(session, request, reference)
                for request, reference in zip(infer_requests, references, strict=True)
            )

    async def _score(self, session: Session, request: InferRequest, reference: Any) -> float | list[float] | Unscored:
        question = [{"role": "user", "content": self._question(request, reference)}]
        try:
            return await session.ask(question, {"temperature": self._temperature}, _read_scores)
        except RequestFailedError as error:
            return Unscored(str(error))

    def _question(self, request: InferRequest, reference: Any) -> str:
        *asked, answer = request.messages
        texts = {
            "question": _as_question(asked),
            "answer": plain_text(answer["content"]),
            "reference": NO_REFERENCE if reference is None else str(reference),
        }
        return _PLACE.sub(lambda place: texts[place[1]], self._prompt)


def _as_question(messages: list[dict[str, Any]]) -> str:
    """A lone message as it is; more of them each under its role."""
    texts = [plain_text(message.get("content")) for message in messages]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"{message['role']}:\n{text}" for message, text in zip(messages, texts, strict=True))


def _read_scores(answer: Answer) -> float | list[float]:
    """The scores in a reply; of several the last.

    Raises:
        MalformedAnswerError: There are none, or one is not from 0 to 1.
    """
    text = _THINKING.sub("", answer.text)
    for values in (_parsed([text]), _parsed(_FENCED.findall(text)), _objects_in(text)):
        found = [scores for value in values if (scores := _scores_in(value)) is not None]
        if found:
            return _checked(found[-1])
    raise MalformedAnswerError(f"the judge gave no score: {text!r}")


def _checked(scores: float | list[float]) -> float | list[float]:
    for score in scores if isinstance(scores, list) else [scores]:
        if not 0 <= score <= 1:
            raise MalformedAnswerError(f"the judge gave a score of {score:g}, expected one from 0 to 1")
    return scores


def _parsed(texts: list[str]) -> list[Any]:
    values = []
    for text in texts:
        with suppress(ValueError, RecursionError):
            values.append(json.loads(text))
    return values


def _objects_in(text: str) -> list[Any]:
    """The JSON objects in a text; a list amid words may be anything."""
    values, decoder, start = [], json.JSONDecoder(), text.find("{")
    while start >= 0:
        end = start + 1
        with suppress(ValueError, RecursionError):
            value, end = decoder.raw_decode(text, start)
            values.append(value)
        start = text.find("{", end)
    return values


def _scores_in(value: Any) -> float | list[float] | None:
    if isinstance(value, dict):
        value = value.get("scores", value.get("score"))
    if isinstance(value, list) and value and all(_is_number(item) for item in value):
        return [float(item) for item in value]
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    # An integer that no float can hold is no score.
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > sys.float_info.max
