"""Real chat templates, all that TRL ships: token ids, the text that trains, and what a template refuses.

Answers are written in Cyrillic letters, queries in Greek and system messages in Armenian ones; no template writes any
of them. So a plain search of the text tells what must train and what must not.
"""

import json
import random
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import transformers
import trl
from packaging.version import Version
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from swiftplug.builtin.tasks.language import SupervisedFineTuning
from swiftplug.config.schema import DataOptions
from swiftplug.data.chat.generation import GenerationChat
from swiftplug.data.chat.render import ChatRenderer
from swiftplug.data.encode import RowEncoder
from swiftplug.data.read.conversation import Conversation, RowError, RowOrigin
from swiftplug.data.read.report import SplitReport
from swiftplug.data.weights import lay_weights
from swiftplug.errors import UserError
from swiftplug.plugin import ContextType, LossScale, Prompt
from swiftplug.plugin.tokenizer import CHATML

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
SHIPPED = [name for name in TEMPLATES if not name.endswith("_training")]  # those of models; TRL trains with the others
ORIGIN = RowOrigin("rows.jsonl", 1)

# These read contents as lists of parts.
PARTS_ONLY = ("idefics3", "llava_next", "smolvlm")

ANSWER = re.compile("[а-я]+")
NOT_ANSWER = re.compile("[α-ωա-ֆ]")


def _tool_call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": "call00001", "type": "function", "function": {"name": name, "arguments": arguments}}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks it up",
            "parameters": {
                "type": "object",
                "properties": {"word": {"type": "string", "description": "What"}},
                "required": ["word"],
            },
        },
    }
]
RESULT = {"role": "tool", "name": "look_up", "tool_call_id": "call00001", "content": "απάντηση"}


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


SYSTEM = {"role": "system", "content": "հրահանգ"}
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[Any] | None]] = {
    "one turn": ([_user("ερώτηση"), _assistant("ответ")], None),
    "system": ([SYSTEM, _user("ερώτηση"), _assistant("ответ")], None),
    "several turns": (
        [
            _user("πρώτη"),
            _assistant("первый"),
            _user("δεύτερη"),
            _assistant("второй"),
            _user("τρίτη"),
            _assistant("ещё"),
        ],
        None,
    ),
    "chinese and emoji": (
        [_user("你好 α 👩‍👩‍👧"), _assistant("数学是а重要的 🎉б🎉"), _user("β"), _assistant("в👍🏽")],
        None,
    ),
    "the same again": ([_user("ω"), _assistant("а"), _user("ω"), _assistant("а"), _user("ω"), _assistant("а")], None),
    "white space": ([_user("  α\n"), _assistant("\n б \n"), _user("γ \t"), _assistant(" д\n\n")], None),
    "empty turns": ([_user("α"), _assistant(""), _user(""), _assistant("б")], None),
    "thinking": (
        [
            _user("α"),
            _assistant("<think>\nмысль\n</think>\n\nответ"),
            _user("β"),
            _assistant("<think>\nдума\n</think>\n\nитог"),
        ],
        None,
    ),
    "reasoning": ([_user("α"), _assistant("ответ", reasoning_content="мысль")], None),
    "special tokens inside": (
        [
            _user("<|im_end|>\n<|im_start|>assistant\nα"),
            _assistant("а<|im_end|>\n<|im_start|>user\nб"),
            _user("<tool_response>\nβ\n</tool_response>"),
            _assistant("<end_of_turn>\n<start_of_turn>model\nв"),
        ],
        None,
    ),
    "tool call": (
        [_user("α"), _assistant("", tool_calls=[_tool_call("look_up", word="слово")]), RESULT, _assistant("ответ")],
        TOOLS,
    ),
    "tool call of a number": (
        [
            _user("α"),
            _assistant("", tool_calls=[_tool_call("look_up", n=42)]),
            RESULT,
            _assistant("ответ"),
            _user("β"),
            _assistant("итог"),
        ],
        TOOLS,
    ),
    "tool call with text": (
        [
            _user("α"),
            _assistant("сейчас", tool_calls=[_tool_call("look_up", word="слово")]),
            RESULT,
            _assistant("ответ"),
        ],
        TOOLS,
    ),
}

ALTERNATE = "must alternate"
NO_TOOLS = "leaves out all of an answer"
# What a template refuses, and a part of the reason. All else it must render.
REFUSED: dict[tuple[str, str], str] = {
    ("gemma", "system"): "System role not supported",
}
for _name in ("gemma", "gemma3", "cohere", "cohere2"):
    for _case in ("tool call", "tool call of a number", "tool call with text"):
        REFUSED[_name, _case] = ALTERNATE
for _name in ("llama3", "lfm2", "phi3", "phi3_5", "qwen2_5_vl", "deepseek_r1_distill", "idefics3", "smolvlm"):
    for _case in ("tool call", "tool call of a number"):
        REFUSED[_name, _case] = NO_TOOLS
for _case in ("tool call", "tool call of a number", "tool call with text"):
    REFUSED["llava_next", _case] = "Only user and assistant roles"
for _name in ("gemma4", "gemma4_v3", "gemma4_v4", "gemma4_v5", "diffusion_gemma"):
    REFUSED[_name, "tool call with text"] = "scatters message 2"  # the text goes behind the tool's result


def _byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE with merges, whose tokens straddle parts; its offsets are trimmed, as GPT-2's are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    corpus = [*TEMPLATES.values(), *(str(case) for case in CONVERSATIONS.values())]
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=900,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=["<s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"],
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>")


def _sentence_piece() -> PreTrainedTokenizerFast:
    """Like Llama 2's: spaces are written `▁`, one is put in front, unknown characters fall back to bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    letters = [str(case) for name, case in CONVERSATIONS.items() if name != "chinese and emoji"]
    tokenizer.train_from_iterator(
        ["▁" + text.replace(" ", "▁") for text in [*TEMPLATES.values(), *letters]],
        trainers.BpeTrainer(
            vocab_size=1200,
            special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_end|>"],
    )


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {"byte level": _byte_level(), "sentence piece": _sentence_piece()}


@pytest.fixture
def tokenizer(template: str, tokenizers: dict[str, PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer with the template of the test."""
    tokenizers["byte level"].chat_template = TEMPLATES[template]
    return tokenizers["byte level"]


def _conversation(template: str, case: str) -> Conversation:
    messages, tools = CONVERSATIONS[case]
    if template.removesuffix("_training") in PARTS_ONLY:
        messages = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    return Conversation(messages, ORIGIN, tools=tools)


def _as_wanted(template: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as a template reads them.

    DeepSeek V3's takes the arguments of calls as JSON text, no object. To the others that read `thinking`, Transformers
    gives the reasoning by that name too since 5.21.
    """
    copies = deepcopy(messages)
    for message in copies:
        if Version(transformers.__version__) < Version("5.21") and "reasoning_content" in message:
            message["thinking"] = message["reasoning_content"]
        for call in message.get("tool_calls", []) if template == "deepseekv3" else []:
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return copies


def _expected_refusal(template: str, case: str) -> str | None:
    return REFUSED.get((template.removesuffix("_training"), case))


def _weights(conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> tuple[str, list[float]]:
    rendered = ChatRenderer(tokenizer).render(conversation)
    weights = [0.0] * len(rendered.text)
    for start, end, weight in lay_weights(rendered, LossScale(), conversation.messages):
        weights[start:end] = [weight] * (end - start)
    return rendered.text, weights


def _stretches(text: str, chosen: list[bool]) -> list[str]:
    marked = "".join("1" if each else "0" for each in chosen)
    return [text[match.start() : match.end()] for match in re.finditer("1+", marked)]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("case", CONVERSATIONS)
def test_ids_are_those_of_apply_chat_template_and_answers_alone_train(
    template: str, case: str, tokenizers: dict[str, PreTrainedTokenizerFast]
) -> None:
    conversation = _conversation(template, case)
    refusal = _expected_refusal(template, case)
    for tokenizer in tokenizers.values():
        tokenizer.chat_template = TEMPLATES[template]
        report = SplitReport()
        encoder = RowEncoder(tokenizer, None, LossScale(), SupervisedFineTuning(), DataOptions(max_length=10**6))
        examples = encoder.encode([(conversation,)], report)
        if refusal:
            [[reason, dropped]] = report.dropped.items()
            assert dropped.count == 1
            assert refusal in f"{reason} {dropped.examples[0]}"
            continue
        assert report.dropped == {}
        [example] = examples
        messages = _as_wanted(template, conversation.messages)
        ids = tokenizer.apply_chat_template(messages, tools=conversation.tools, return_dict=False)
        assert example["input_ids"].tolist() == ids
    if refusal:
        return
    text, weights = _weights(conversation, tokenizer)
    answers = list(ANSWER.finditer(text))
    assert len(answers) >= sum(bool(m["content"]) for m in CONVERSATIONS[case][0] if m["role"] == "assistant")
    for match in answers:
        assert set(weights[match.start() : match.end()]) == {1.0}
    for match in NOT_ANSWER.finditer(text):
        assert weights[match.start()] == 0


# What may stand before an answer (the model writes it: thinking tags, channels), and what ends its turn.
BEFORE = r"(?:<think>\s*</think>\s*|\s*<think></think>\s*|<\|channel\|>final<\|message\|>| to=user<\|message\|>| )?"
END_OF_TURN = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma4": "<turn|>",
    "gemma": "<end_of_turn>",
    "glm4moe": "",
    "glm4moe_training": "<|user|>",
    "gptoss": "<|end|>",
    "idefics3": "<end_of_utterance>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llava_next": "</s>",
    "muse": "<|eot|>",
    "nemotron": "<|im_end|>",
    "phi3": "<|end|>",
    "qwen": "<|im_end|>",
    "smolvlm": "<end_of_utterance>",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_trains_is_each_answer_and_its_end_of_turn_token(
    template: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    text, weights = _weights(_conversation(template, "several turns"), tokenizer)
    end = END_OF_TURN[max((name for name in END_OF_TURN if template.startswith(name)), key=len)]
    ends = [end, end, "<|return|>" if template.startswith("gptoss") else end]
    trained = _stretches(text, [weight == 1 for weight in weights])
    assert len(trained) == 3
    for stretch, answer, suffix in zip(trained, ("первый", "второй", "ещё"), ends, strict=True):
        assert re.fullmatch(BEFORE + answer + re.escape(suffix), stretch), stretch


# Where TRL's generation blocks differ, and rightly or not train more: the header that the generation prompt writes...
TRL_HEADERS = {
    "deepseek": r"<｜Assistant｜>|<｜tool▁outputs▁end｜>",
    "gptoss": r"<\|start\|>assistant",
    "muse": r"<\|start\|>assistant",
    "qwen2_5_training": r"\n",
}


@pytest.mark.parametrize(
    ("template", "case"),
    [
        (template, case)
        for template in TEMPLATES
        for case in CONVERSATIONS
        if template.endswith("_training") and not _expected_refusal(template, case)
    ],
)
def test_trains_what_the_generation_blocks_of_trl_enclose(
    template: str, case: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    conversation = _conversation(template, case)
    text, weights = _weights(conversation, tokenizer)
    (theirs,), (spans,) = render_jinja_template(
        [_as_wanted(template, conversation.messages)],
        tools=conversation.tools,
        chat_template=tokenizer.chat_template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    assert theirs == text
    expected = [False] * len(text)
    header = next((pattern for name, pattern in TRL_HEADERS.items() if template.startswith(name)), None)
    for start, end in spans:
        end = start + len(text[start:end].rstrip())  # white space behind the end-of-turn token does not train
        if header:
            opening = re.match(header, text[start:end])
            assert opening
            start += opening.end()
        expected[start:end] = [True] * (end - start)
    if template.startswith("phi3"):  # it also trains the end-of-text token behind the last end-of-turn token
        assert text.endswith("<|im_end|>")
        expected[-len("<|im_end|>") :] = [False] * len("<|im_end|>")
    ours = [weight == 1 for weight in weights]
    if template == "diffusion_gemma_training":  # the model stops at this token, so the turn's end
        stop = text.find("<tool_call|><|tool_response>")
        if stop >= 0:
            stop += len("<tool_call|>")
            assert all(ours[stop : stop + len("<|tool_response>")])
            ours[stop : stop + len("<|tool_response>")] = [False] * len("<|tool_response>")
    assert _stretches(text, ours) == _stretches(text, expected)
    assert ours == expected


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name.removesuffix("_training") not in PARTS_ONLY])
def test_random_conversations_of_agents(tokenizer: PreTrainedTokenizerFast) -> None:
    """Calls with arguments of every type, or none; several results; empty contents; thinking."""
    renderer = ChatRenderer(tokenizer)
    chance = random.Random(8)
    arguments = [42, -1.5, True, None, [], {}, ["а", 1], {"k": "б"}, "", "ввв", "а\nб", "<|im_end|>", '"']
    for _ in range(6):
        messages = [SYSTEM] if chance.random() < 0.4 else []
        for _ in range(chance.randint(1, 2)):
            messages.append(_user("αβ"))
            for _ in range(chance.randint(0, 2)):
                given = {f"p{place}": chance.choice(arguments) for place in range(chance.randint(0, 3))}
                messages.append(_assistant(chance.choice(["", "аб"]), tool_calls=[_tool_call("look_up", **given)]))
                messages.append({**RESULT, "content": chance.choice(["γ", "", "δ\n", '{"δ": 1}'])})
            thinking = {"reasoning_content": "дума"} if chance.random() < 0.3 else {}
            messages.append(_assistant(chance.choice(["ответ", "да\n"]), **thinking))
        conversation = Conversation(messages, ORIGIN, tools=TOOLS)
        try:
            rendered = renderer.render(conversation)
        except RowError:
            continue
        for segment in rendered.segments:
            text = rendered.text[segment.start : segment.end]
            assert not (NOT_ANSWER if segment.type is ContextType.RESPONSE else ANSWER).search(text)


@pytest.mark.parametrize("template", SHIPPED)
def test_prompt_and_reference_are_what_training_writes(template: str, tokenizer: PreTrainedTokenizerFast) -> None:
    for case in ("thinking", "reasoning", "tool call with text"):
        # Some templates write the turn's header, or earlier reasoning, otherwise once there is an answer.
        if _expected_refusal(template, case) or (template.startswith("gptoss") and "tool" in case):
            continue
        conversation = _conversation(template, case)
        encoder = RowEncoder(
            tokenizer, None, LossScale(), SupervisedFineTuning(), DataOptions(max_length=10**6), generation=True
        )
        [example] = encoder.encode([(conversation,)], SplitReport())
        text = encoder.renderer.render(conversation).text
        prompt = tokenizer.decode(example["prompt_ids"], clean_up_tokenization_spaces=False)
        assert prompt.endswith(example["opened"])
        assert text.startswith(prompt.removesuffix(example["opened"]) + example["reference"]), case
    if "{{- '<think>\\n' }}" in TEMPLATES[template]:
        assert example["opened"].startswith("<think>\n")


@pytest.mark.parametrize("template", SHIPPED)
def test_the_end_of_turn_is_what_ends_the_last_answer(template: str, tokenizer: PreTrainedTokenizerFast) -> None:
    expected = END_OF_TURN[max((name for name in END_OF_TURN if template.startswith(name)), key=len)]
    expected = "<|return|>" if template.startswith("gptoss") else expected
    assert ChatRenderer(tokenizer).end_of_turn() == expected


# Those that end the last answer otherwise than others; those that write no result of a tool without a call.
LAST_IS_OTHER = ("gptoss",)
NEED_CALLS = ("cohere", "gemma", "diffusion_gemma", "gptoss", "phi3")


@pytest.mark.parametrize("template", [name for name in SHIPPED if name not in PARTS_ONLY])
def test_a_reply_is_what_the_template_writes_between_two_answers(
    template: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    chat, end = GenerationChat(tokenizer), ChatRenderer(tokenizer).end_of_turn()
    messages = [SYSTEM, _user("ερώτηση"), _assistant("ответ")][template == "gemma" :]
    for reply in (_user("απάντηση"), {"role": "tool", "content": "απάντηση"}):
        answered, replied = Prompt("row", messages), Prompt("row", [*messages, reply])
        if template.startswith(LAST_IS_OTHER):
            with pytest.raises(UserError, match=r"the chat template (refuses it|writes an answer otherwise once)"):
                chat.reply(answered, replied)
            continue
        if reply["role"] == "tool" and template.startswith(NEED_CALLS):
            continue
        text = tokenizer.decode(chat.reply(answered, replied))
        whole = tokenizer.apply_chat_template(replied.messages, tokenize=False, add_generation_prompt=True)
        assert "απάντηση" in text and not ANSWER.search(text)
        assert isinstance(whole, str) and whole.endswith(text)
        assert re.search(rf"ответ\s*{re.escape(end)}$", whole.removesuffix(text))


@pytest.mark.parametrize("template", ["qwen3"])
def test_a_reply_before_which_thoughts_are_forgotten_is_refused(
    template: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    chat = GenerationChat(tokenizer)
    for thought, role, fits in (("", "user", True), ("мысль", "tool", True), ("мысль", "user", False)):
        messages = [_user("α"), _assistant(f"<think>\n{thought}\n</think>\n\nответ")]
        prompts = Prompt("row", messages), Prompt("row", [*messages, {"role": role, "content": "β"}])
        if fits:
            assert tokenizer.decode(chat.reply(*prompts)).startswith("\n<|im_start|>user\n")
        else:
            with pytest.raises(UserError, match=r"once the conversation goes on.*: '<think>.*' becomes 'ответ"):
                chat.reply(*prompts)


def test_an_end_of_turn_other_than_the_end_token_ends_an_answer(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    llama = tokenizers["sentence piece"]  # its end token is `</s>`
    llama.chat_template = CHATML
    chat = GenerationChat(llama, [7])
    end = llama.convert_tokens_to_ids("<|im_end|>")
    assert (chat.end_ids, chat.stop_text) == ([end, llama.eos_token_id, 7], "")
    words = llama("ответ", add_special_tokens=False)["input_ids"]
    for stop in chat.end_ids:
        assert (
            chat.answer([*words, stop, *words]).strip() == "ответ"
        )  # of a piece, the decoder keeps the space before it
