"""A model: a Llama of any size with random weights, whose tokens are bytes."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from swiftplug.plugin import RunArguments

SPECIAL_TOKENS = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_llama(
    args: RunArguments, *, hidden_size: int = 64, num_layers: int = 2, num_heads: int = 4
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Build a Llama with random weights, and a tokenizer with one token per byte.

    Args:
        args: The run's arguments: every field of the config is an attribute. A resumed run calls the plugin again,
            so the weights depend on `args.seed` alone.
        hidden_size: Width of the model. Keyword-only parameters are a plugin's options: `--set model.hidden_size=128`.
        num_layers: Number of decoder layers.
        num_heads: Number of attention heads; `hidden_size` is a multiple of it.

    Returns:
        The model and its tokenizer. The tokenizer must be a fast one (it gives offsets) with a chat template.
    """
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        return LlamaForCausalLM(config), tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer of 256 bytes and three special tokens: byte-pair encoding without any merges."""
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )
