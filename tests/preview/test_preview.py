"""The preview: what it shows is what encoding does, in text, HTML and JSON."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.version import Version
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from swiftplug.builtin.tasks.language import Pretraining, SupervisedFineTuning
from swiftplug.config.load import load_train_config
from swiftplug.config.schema import DataOptions, ModelOptions
from swiftplug.data.encode import RowEncoder
from swiftplug.data.read.conversation import Conversation, RowOrigin
from swiftplug.data.read.report import SplitReport
from swiftplug.errors import UserError
from swiftplug.plugin import ContextType, LossScale
from swiftplug.preview.preview import preview, to_html, to_text
from swiftplug.runs.preview_rows import PreviewRow, preview_rows
from swiftplug.runs.tokenizer import load_tokenizer

PT, SFT = Pretraining(), SupervisedFineTuning()

ANSI = re.compile(r"\x1b\[([0-9;]*)m")


class Vowels(LossScale):
    """Vowels of responses weigh 2.5, digits 0.5, spaces 0, the rest 1."""

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        if context_type is not ContextType.RESPONSE:
            return super().get_loss_scale(context, context_type, is_last_round, **kwargs)
        table = {" ": 0.0} | dict.fromkeys("aeiou", 2.5) | dict.fromkeys("0123456789", 0.5)
        return list(context), [table.get(letter, 1.0) for letter in context]


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def _chat(question: str, answer: str, line: int = 1) -> Conversation:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation(turns, RowOrigin("rows.jsonl", line))


def _encoder(
    tokenizer: PreTrainedTokenizerFast, loss_scale: LossScale | None = None, task: Any = SFT, **options: Any
) -> RowEncoder:
    return RowEncoder(tokenizer, None, loss_scale or Vowels(), task, DataOptions(**{"max_length": 1000, **options}))


def _rows(conversations: list[Conversation], tokenizer: PreTrainedTokenizerFast, **settings: Any) -> list[PreviewRow]:
    encoder = _encoder(tokenizer, **settings)
    return [row for conversation in conversations for row in preview_rows((conversation,), encoder)]


CONVERSATIONS = [_chat("<b>q & a</b>", "an answer: 42 👩‍👩‍👧 好", 1), _chat("q", "\x1b[31mred</span><script>", 2)]


def test_rows_are_those_that_encoding_makes(tokenizer: PreTrainedTokenizerFast) -> None:
    shown = _rows(CONVERSATIONS, tokenizer)
    examples = _encoder(tokenizer).encode([(each,) for each in CONVERSATIONS], SplitReport())
    for row, example, conversation in zip(shown, examples, CONVERSATIONS, strict=True):
        assert row.input_ids == example["input_ids"].tolist()
        assert row.weights == example["loss_scale"].tolist()
        assert "".join(row.tokens) == tokenizer.apply_chat_template(conversation.messages, tokenize=False)
        assert len(row.tokens) == len(row.input_ids)
        assert "".join(segment.text for segment in row.segments) == "".join(row.tokens)
        for segment in row.segments:
            assert "".join(row.tokens[segment.first_token : segment.end_token]) == segment.text
        assert [segment.type for segment in row.segments] == ["other"] * 3 + ["response", "suffix", "other"]
        assert [segment.role for segment in row.segments] == ["", "user", "", "assistant", "assistant", ""]
        assert row.trained == sum(weight != 0 for weight in row.weights)
        assert sum(row.counts.values()) == len(row.tokens)


def test_an_emoji_of_many_tokens_is_shown_once(tokenizer: PreTrainedTokenizerFast) -> None:
    [row] = _rows([_chat("q", "👧!")], tokenizer)
    place = row.tokens.index("👧")
    assert row.tokens[place : place + 5] == ["👧", "", "", "", "!"]


def test_long_rows_are_shown_as_they_are_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    conversation = _chat("q", "a long answer of words")
    [whole] = _rows([conversation], tokenizer)
    length = len(whole.input_ids)
    for too_long, sizes in (("truncate", [25]), ("split", [25, length - 25])):
        parts = _rows([conversation], tokenizer, max_length=25, too_long=too_long)
        assert [len(part.input_ids) for part in parts] == sizes
        examples = _encoder(tokenizer, max_length=25, too_long=too_long).encode([(conversation,)], SplitReport())
        assert [part.input_ids for part in parts] == [example["input_ids"].tolist() for example in examples]
        for part in parts:
            assert "".join(segment.text for segment in part.segments) == "".join(part.tokens)
            assert part.note == f"{too_long}: {length} tokens, max_length is 25"
            for segment in part.segments:
                assert "".join(part.tokens[segment.first_token : segment.end_token]) == segment.text
    [dropped] = _rows([conversation], tokenizer, max_length=25)
    assert dropped.dropped == f"longer than max_length: {length} tokens, max_length is 25"
    assert dropped.tokens == whole.tokens


def test_a_plain_text_shows_the_token_that_ends_it(tokenizer: PreTrainedTokenizerFast) -> None:
    [row] = _rows(
        [Conversation([], RowOrigin("t.jsonl", 1), text="学 text")], tokenizer, task=PT, loss_scale=LossScale()
    )
    assert "".join(row.tokens) == "学 text<|im_end|>"
    assert [(segment.type, segment.end_token) for segment in row.segments] == [
        ("response", len(row.tokens) - 1),
        ("suffix", len(row.tokens)),
    ]


def test_plain_text_marks_what_trains_without_any_colour(tokenizer: PreTrainedTokenizerFast) -> None:
    text = to_text(_rows([_chat("q", "be 4")], tokenizer), ["a note"], color=False)
    assert not ANSI.search(text)
    assert text.startswith("note: a note\n⟦text⟧ trains with weight 1")
    # The b and the e, the space, the digit, the end-of-turn token.
    assert "<|im_start|>assistant\n⟦b⟧⟦2.5× e⟧ ⟦0.5× 4⟧⟦<|im_end|>⟧\n" in text
    assert (
        "rows.jsonl:1 · 26 tokens, 4 trained (15.4%): 22 of weight 0, 1 of weight 0.5, 2 of weight 1, 1 of weight 2.5"
        in text
    )
    assert text.endswith("1 of 1 row used: 26 tokens, 4 trained")


def test_colours_follow_the_weights_and_the_text_stays(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = _rows([_chat("q", "be 4 x")], tokenizer)
    text = to_text(rows, [], color=True)
    assert "".join(rows[0].tokens) in ANSI.sub("", text)
    answer = text.split("assistant")[-1]
    found = {letter: re.search(rf"48;2;([0-9;]+)m{letter}\x1b", answer) for letter in "be4x"}
    backgrounds = {letter: match[1] for letter, match in found.items() if match}
    assert len(backgrounds) == 4
    assert backgrounds["b"] == backgrounds["x"]
    assert len(set(backgrounds.values())) == 3


def test_control_characters_of_the_data_do_not_reach_the_terminal(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = _rows([_chat("\x07\x9b2J", "\x1b[2J\x1b]0;title\x07 done\r[bold]not markup[/bold]")], tokenizer)
    for color in (False, True):
        text = ANSI.sub("", to_text(rows, [], color=color))
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
        assert "\\x1b" in text
    assert "[bold]not markup[/bold]" in re.sub("[⟦⟧]|-?[0-9.]+× ", "", to_text(rows, [], color=False)).replace(
        "\\x0d", ""
    )


class _Page(HTMLParser):
    """The token spans of a page, and every tag in it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        attributes = dict(attrs)
        assert not {"src", "href", "onclick"} & set(attributes)
        self.inside = tag == "span" and (attributes.get("class") or "").startswith("t ")
        if self.inside:
            self.tokens.append((attributes["title"] or "", ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tokens[-1] = (self.tokens[-1][0], self.tokens[-1][1] + data)


def test_a_page_has_every_token_with_its_weight_and_escapes_data(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = _rows(CONVERSATIONS, tokenizer)
    html = to_html(rows, ["<i>note</i>"])
    page = _Page()
    page.feed(html)
    assert "script" not in page.tags
    assert not {"b", "i", "link", "img", "iframe"} & page.tags
    assert "".join(text for _, text in page.tokens) == "".join("".join(row.tokens) for row in rows)
    titles = [title.split(" · ") for title, _ in page.tokens]
    expected = [(token, weight) for row in rows for token, weight in zip(row.input_ids, row.weights, strict=True)]
    assert [
        (int(title[1].removeprefix("id ")), float(title[2].removeprefix("weight "))) for title in titles
    ] == expected
    assert {title[3] for title in titles} == {"other", "response", "suffix"}
    assert "&lt;i&gt;note&lt;/i&gt;" in html
    assert "http" not in html.replace("http-equiv", "")


@pytest.fixture
def shown(tiny_model_dir: Path, write_jsonl: Callable[..., Path]) -> Callable[..., str]:
    def show(rows: list[dict[str, Any]], format: str = "json", limit: int = 3, **options: Any) -> str:
        options = {"model": str(tiny_model_dir), "dataset": [str(write_jsonl(rows))]} | options
        config = load_train_config(None, options, []).config
        return preview(config, rows=limit, format=format, color=False)  # type: ignore[arg-type]

    return show


def test_json_of_a_config(shown: Callable[..., str], tokenizer: PreTrainedTokenizerFast) -> None:
    good = {"prompt": "q", "completion": "学 a"}
    rows = json.loads(shown([good, {"prompt": "q"}, good, good]))
    assert [row["dropped"] is None for row in rows] == [True, False, True]
    assert rows[0]["origin"].endswith("data.jsonl:1")
    assert rows[1]["origin"].endswith("data.jsonl:2")
    assert rows[1]["input_ids"] == []
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "学 a"}]
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    assert rows[0]["input_ids"] == ids
    assert len(rows[0]["tokens"]) == len(rows[0]["weights"]) == len(ids)
    answer = next(segment for segment in rows[0]["segments"] if segment["type"] == "response")
    assert answer["text"] == "学 a"
    assert set(rows[0]["weights"][answer["first_token"] : answer["end_token"]]) == {1.0}
    assert sum(rows[0]["counts"].values()) == len(ids)


def test_a_loss_scale_of_the_config_acts(shown: Callable[..., str]) -> None:
    rows = [{"prompt": "q", "completion": "Thought: x\nAction: look"}]
    [row] = json.loads(shown(rows, loss_scale="react"))
    letters = list(zip(row["tokens"], row["weights"], strict=True))
    answer = "".join(token for token, weight in letters if weight == 2)
    assert answer == "Action: look"


def test_text_of_a_config_and_an_empty_dataset(shown: Callable[..., str]) -> None:
    text = shown([{"prompt": "q", "completion": "a"}], format="text")
    assert "⟦a<|im_end|>⟧" in text
    with pytest.raises(UserError, match="empty"):
        shown([])


PAIRS = [
    {"prompt": "q", "chosen": "good", "rejected": "bad", "margin": 1.5},
    {"prompt": "q", "chosen": "same", "rejected": "same"},
    {"prompt": "q", "chosen": "good", "rejected": "a bad one"},
]


def test_pairs_are_shown_side_by_side(shown: Callable[..., str], tokenizer: PreTrainedTokenizerFast) -> None:
    options = {"task": "dpo", "data": {"max_length": 26}}
    first, equal, too_long = json.loads(shown(PAIRS, **options))
    for row, answer, name in ((first, "good", "chosen"), (first["rejected"], "bad", "rejected")):
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
        assert row["input_ids"] == tokenizer.apply_chat_template(messages, return_dict=False)
        trained = [token for token, weight in zip(row["tokens"], row["weights"], strict=True) if weight]
        assert "".join(trained) == f"{answer}<|im_end|>"
        assert row["answer"] == name
        assert sum(row["counts"].values()) == len(row["tokens"])
    assert (first["note"], first["rejected"]["note"], first["rejected"]["rejected"]) == ("margin 1.5", "", None)
    assert equal["dropped"] == "the two answers are the same"
    assert (
        too_long["dropped"] == too_long["rejected"]["dropped"] == "longer than max_length: 31 tokens, max_length is 26"
    )

    text = shown(PAIRS, format="text", **options)
    chosen, rejected = text.index("   chosen · 26 tokens, 5 trained"), text.index("   rejected · 25 tokens, 4 trained")
    assert chosen < text.index("⟦good<|im_end|>⟧") < rejected < text.index("⟦bad<|im_end|>⟧")
    assert text.endswith("1 of 3 rows used: 51 tokens, 9 trained")

    html = shown(PAIRS, format="html", **options)
    assert html.count('<div class="pair">') == 2
    assert re.findall("<h3>(.*)</h3>", html) == ["chosen", "rejected"] * 2
    page = _Page()
    page.feed(html)
    expected = [*first["tokens"], *first["rejected"]["tokens"], *too_long["tokens"], *too_long["rejected"]["tokens"]]
    assert [text for _, text in page.tokens] == expected


def test_rated_answers_are_shown_with_their_rating(shown: Callable[..., str]) -> None:
    rows = [{"prompt": "q", "completion": "a", "label": False}, {"prompt": "r", "chosen": "b", "rejected": "c"}]
    found = [(row["answer"], "".join(row["tokens"])[-13:]) for row in json.loads(shown(rows, task="kto"))]
    assert found == [("bad", "\na<|im_end|>\n"), ("good", "\nb<|im_end|>\n"), ("bad", "\nc<|im_end|>\n")]
    assert "data.jsonl:2 · good · 23 tokens, 2 trained" in shown(rows, format="text", task="kto")


def test_steps_are_shown_with_their_labels(shown: Callable[..., str]) -> None:
    [row] = json.loads(shown([{"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}], task="prm"))
    assert row["note"] == "steps: right, wrong"


def test_what_the_chat_template_does_not_read_is_said_with_the_row(shown: Callable[..., str]) -> None:
    answer = {"role": "assistant", "content": "a", "reasoning": "hm"}
    row = {"messages": [{"role": "user", "content": "q"}, answer], "tools": [{"name": "look"}]}
    [shown_row] = json.loads(shown([row]))
    assert "does not read `reasoning_content`, `tools` (--tools hermes" in shown_row["note"]
    assert "does not read `reasoning_content`" in json.loads(shown([row], tools="hermes"))[0]["note"]


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.21"),
    reason="Transformers reads configs without torch since 5.21",
)
def test_a_preview_imports_no_torch(tiny_model_dir: Path, write_jsonl: Callable[..., Path]) -> None:
    rows = write_jsonl([{"prompt": "q", "completion": "a"}])
    arguments = [
        "preview",
        "--model",
        str(tiny_model_dir),
        "--dataset",
        str(rows),
        "--tuner",
        "lora",
        "--metric",
        "acc",
    ]
    code = (
        "import sys\n"
        "from swiftplug.cli.main import app\n"
        f"app({[*arguments, '--loss-scale', 'last_round+react']!r}, standalone_mode=False)\n"
        "heavy = ('torch', 'peft', 'accelerate', 'transformers.trainer', 'transformers.modeling_utils', 'matplotlib')\n"
        "print('imported:', [it for it in heavy if it in sys.modules])\n"
        # What was left out is there when it is wanted.
        "import torch, transformers.modeling_rope_utils as later\n"
        "print(later.torch.Tensor is torch.Tensor)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["imported: []", "True"], done.stderr


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral", "gemma3_text", "deepseek_v3", "no_such", None])
@pytest.mark.parametrize(
    "named", ["TokenizersBackend", "PreTrainedTokenizerFast", "LlamaTokenizerFast", "Qwen2Tokenizer", "Unknown", None]
)
def test_the_tokenizer_is_the_one_of_auto_tokenizer(
    tiny_model_dir: Path, tmp_path: Path, model_type: str | None, named: str | None
) -> None:
    """Its class, and with it its parts, follow from the model's type and the class that the tokenizer names."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    for file, key, value in (
        ("config.json", "model_type", model_type),
        ("tokenizer_config.json", "tokenizer_class", named),
    ):
        facts = json.loads((folder / file).read_text(encoding="utf-8"))
        facts.pop(key)
        (folder / file).write_text(json.dumps(facts | ({key: value} if value else {})), encoding="utf-8")

    expected, loaded = AutoTokenizer.from_pretrained(folder), load_tokenizer(str(folder), ModelOptions())
    assert type(loaded) is type(expected)
    assert loaded.backend_tokenizer.to_str() == expected.backend_tokenizer.to_str()
    assert loaded.special_tokens_map == expected.special_tokens_map
