"""The tiny model: a checkpoint like any other, with a token a byte and the same weights from the same seed."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from swiftplug.plugin.registry import PluginChoice, Registry

TEXTS = [
    "",
    "Step 1: 12 + 7 = 19\n\\boxed{19}",
    "  two  spaces, tab\t, CR\r\n",
    "学习数学 🧮 ñ",
    "\x00\x7f",
    "<|end|>?",
]


def build(seed=1, **options):
    return (
        Registry.discover()
        .resolve("model", PluginChoice(name="tiny", options=options), "--model")
        .bound(SimpleNamespace(seed=seed))
    )


@pytest.fixture(scope="module")
def pair():
    return build()


def test_has_about_a_million_parameters(pair):
    model, _ = pair
    assert 0.6e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.5e6
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_saved_and_loaded_as_any_checkpoint(pair, tmp_path: Path):
    model, tokenizer = pair
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, again = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)

    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    for text in TEXTS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert again.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == rendered
    assert (again.eos_token_id, again.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_its_tokens(pair, text):
    _, tokenizer = pair
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_number_below_a_hundred_is_one_token(pair):
    _, tokenizer = pair
    assert tokenizer.tokenize("12 + 7 = 19") == ["12", "Ġ+", "Ġ7", "Ġ=", "Ġ19"]
    assert tokenizer.tokenize("3451") == ["34", "51"]


def test_the_words_of_the_arithmetic_problems_are_tokens(pair):
    _, tokenizer = pair
    for row in Registry.discover().resolve("dataset", PluginChoice(name="arithmetic"), "--dataset").bound():
        for message in row["messages"]:
            signs = re.findall(r"[0-9]+|[A-Za-z]+|[^A-Za-z0-9 ]", message["content"].replace("\\boxed", "boxed"))
            assert len(tokenizer.tokenize(message["content"])) == len(signs)


def test_other_text_is_cut_into_its_bytes(pair):
    _, tokenizer = pair
    assert len(tokenizer("学习 zebras")["input_ids"]) == len("学习 zebras".encode())


def test_a_turn_costs_two_tokens(pair):
    _, tokenizer = pair
    contents = ["Be brief.", "1 + 1?", "2", "And 2 + 2?", "4"]
    roles = ["system", "user", "assistant", "user", "assistant"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    ids = tokenizer.apply_chat_template(messages)["input_ids"]
    expected = []
    for role, text in zip(roles, contents, strict=True):
        start = tokenizer.convert_tokens_to_ids(f"<|{role}|>")
        expected += [start, *tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert ids == expected


def test_a_prompt_ends_where_the_answer_begins(pair):
    _, tokenizer = pair
    question, answer = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}
    prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template([question, answer], tokenize=False).removeprefix(prompt) == "2<|end|>"


def test_roles_in_any_order_are_rendered(pair):
    _, tokenizer = pair
    messages = [{"role": role, "content": "x"} for role in ("assistant", "tool", "user", "user", "system")]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "".join(f"<|{message['role']}|>x<|end|>" for message in messages)


def test_the_seed_decides_the_weights_and_the_random_state_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = build(seed=1)[0].state_dict()
    assert torch.equal(torch.rand(3), expected)
    same, other = build(seed=1)[0].state_dict(), build(seed=2)[0].state_dict()
    assert all(torch.equal(weight, same[name]) for name, weight in first.items())
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_its_shape_is_an_option():
    model, _ = build(hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64)
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (32, 1)


def test_padding_on_the_left_changes_no_answer(pair):
    model, tokenizer = pair
    prompt = tokenizer("How many?", return_tensors="pt")["input_ids"]
    padded = torch.cat([torch.full((1, 5), tokenizer.pad_token_id), prompt], dim=1)
    mask = (padded != tokenizer.pad_token_id).long()
    options = {"max_new_tokens": 8, "do_sample": False}
    plain = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[:, prompt.shape[1] :]
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, padded.shape[1] :], plain)
