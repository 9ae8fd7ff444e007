"""A PRM that asks a judge model on an OpenAI-compatible server."""

import json
import re
from contextlib import suppress
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, StrictFloat, TypeAdapter

from swiftplug.builtin.boxed import without_reasoning
from swiftplug.builtin.openai.chat import CUT_OFF, MalformedAnswerError, plain_text, read_answer
from swiftplug.builtin.openai.client import HOW_TO_ASK, ChatClient, ClientOptions, RequestFailed
from swiftplug.plugin import PRM, InferRequest, Unscored, UserError

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

_PLACEHOLDER = re.compile(r"\{(question|answer|reference)\}")
_FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)

_SCORES: TypeAdapter[float | list[float]] = TypeAdapter(StrictFloat | Annotated[list[StrictFloat], Field(min_length=1)])


class Judge(PRM):
    """Asks a judge model to score the steps of each answer, or the whole answer, from 0 to 1.

    The judge replies with JSON: `{"scores": [...]}` for the steps or `{"score": ...}` for the whole answer, with or
    without words around it; or with a bare list or number as its whole reply or in a fenced block. The request is
    repeated if the reply has no scores, or one that is not from 0 to 1; after the last try the answer stays unscored.
    The key comes from the environment variable OPENAI_API_KEY; a server given by `base_url` needs none.

    Args:
        model: The judge, as the server calls it.
        base_url: Address of the server, usually ending in `/v1`; None for OPENAI_BASE_URL, else OpenAI's own.
        prompt: The judge's prompt; `{question}`, `{answer}` and `{reference}` are filled in, other braces kept.
        temperature: Sampling temperature of its replies.
        concurrency: Number of parallel requests.
        timeout: Seconds for one try of a request.
        max_retries: Number of retries of a request that got no score.
        time_limit: Seconds after which a request is not retried.
        requests_per_minute: Maximum number of tries per minute, evenly spaced; None for no limit.
        extra_body: Additional fields of every request; a null removes one.
    """

    may_change = HOW_TO_ASK

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
        self._prompt = prompt
        self._temperature = temperature
        options = ClientOptions(
            base_url, concurrency, timeout, max_retries, time_limit, requests_per_minute, extra_body
        )
        self._client = ChatClient("prm 'client'", model, options)

    def __call__(self, infer_requests: list[InferRequest], **kwargs: Any) -> list[float | list[float] | Unscored]:
        """Score answers; see `PRM.__call__`.

        Raises:
            UserError: The server rejects the key or the model, or cannot be reached.
        """
        references = kwargs.get("ground_truths") or [None] * len(infer_requests)
        requests = []
        for index, (request, reference) in enumerate(zip(infer_requests, references, strict=True)):
            messages = [{"role": "user", "content": self._question(request, reference)}]
            requests.append((index, {"messages": messages, "temperature": self._temperature}))
        scored = dict(self._client.ask_all(requests, _read_scores))
        return [
            Unscored(result.reason) if isinstance(result, RequestFailed) else result
            for _, result in sorted(scored.items())
        ]

    def _question(self, request: InferRequest, reference: Any) -> str:
        *asked, answer = request.messages
        texts = [plain_text(message.get("content")) for message in asked]
        if len(texts) > 1:
            texts = [f"{message['role']}:\n{text}" for message, text in zip(asked, texts, strict=True)]
        values = {
            "question": "\n\n".join(texts),
            "answer": plain_text(answer["content"]),
            "reference": NO_REFERENCE if reference is None else str(reference),
        }
        return _PLACEHOLDER.sub(lambda match: values[match[1]], self._prompt)


def _read_scores(body: str) -> float | list[float]:
    """The scores in a response, the last ones if there are several.

    Raises:
        MalformedAnswerError: There are none, or one is not from 0 to 1.
    """
    answer = read_answer(body)
    text = without_reasoning(answer.text)
    # What an unfinished reply says last is not its verdict, unless the verdict is all that it says.
    is_finished = answer.finish_reason.lower() not in CUT_OFF
    for texts in ([text], *([_FENCED.findall(text), _json_objects(text)] if is_finished else ())):
        found = [scores for each in texts if (scores := _parse_scores(each)) is not None]
        if found:
            for score in found[-1] if isinstance(found[-1], list) else [found[-1]]:
                if not 0 <= score <= 1:
                    raise MalformedAnswerError(f"the judge gave a score of {score:g}, expected one from 0 to 1")
            return found[-1]
    raise MalformedAnswerError(f"the judge gave no score: {text!r}")


def _json_objects(text: str) -> list[str]:
    """The JSON objects in a text. Lists are ignored: between words, they may mean anything."""
    objects, decoder, start = [], json.JSONDecoder(), text.find("{")
    while start >= 0:
        end = start + 1
        with suppress(ValueError, RecursionError):
            end = decoder.raw_decode(text, start)[1]
            objects.append(text[start:end])
        start = text.find("{", end)
    return objects


def _parse_scores(text: str) -> float | list[float] | None:
    """The scores in a JSON text, in range or not; None if it holds something else."""
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        return _SCORES.validate_python(value.get("scores", value.get("score")) if isinstance(value, dict) else value)
    return None
