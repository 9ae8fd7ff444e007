from types import SimpleNamespace
from typing import Any

import pytest
import torch

from swiftplug.scaffold.package.model import byte_tokenizer, small_model

ARGS: Any = SimpleNamespace(seed=1)


def test_text_comes_back_from_its_tokens() -> None:
    tokenizer = byte_tokenizer()
    messages = [{"role": "user", "content": "Größe? 多少 🙂"}, {"role": "assistant", "content": "3"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<start>user\nGröße? 多少 🙂<end>\n<start>assistant\n3<end>\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma"])
def test_the_options_shape_the_model(architecture: str) -> None:
    model, tokenizer = small_model(ARGS, architecture=architecture, hidden_size=32, num_layers=3)
    assert (model.config.model_type, model.config.num_hidden_layers) == (architecture, 3)
    assert model(input_ids=torch.tensor([tokenizer("abc").input_ids])).logits.shape == (1, 3, len(tokenizer))
