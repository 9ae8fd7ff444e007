from types import SimpleNamespace

import torch

from swiftplug_plugins_example.model import byte_llama, byte_tokenizer

TALK = [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "3\n"}]


def test_a_token_is_a_byte_and_the_chat_template_ends_every_turn() -> None:
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 259
    text = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert text == "<|im_start|>user\nGröße?<|im_end|>\n<|im_start|>assistant\n3\n<|im_end|>\n"
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.encode()) - 2 * len("<|im_start|>") - 2 * len("<|im_end|>") + 4
    assert tokenizer.decode(ids) == text
    assert tokenizer.is_fast


def test_the_weights_follow_the_seed_and_disturb_no_other() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    (one, _), (same, _), (other, _) = (byte_llama(SimpleNamespace(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    weights = [model.lm_head.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_options_shape_the_model() -> None:
    model, tokenizer = byte_llama(SimpleNamespace(seed=1), hidden_size=32, num_layers=3, num_heads=2)
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (3, 2)
    assert model.lm_head.weight.shape == (len(tokenizer), 32)
    assert model(torch.tensor([tokenizer("abc").input_ids])).logits.shape == (1, 3, len(tokenizer))
