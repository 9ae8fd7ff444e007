"""A model: any architecture of Transformers, small and with random weights."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from swiftplug.plugin import RunArguments

SPECIAL_TOKENS = ["<pad>", "<start>", "<end>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<start>{{ message['role'] + '\n' + message['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)


# The keyword-only parameters are the plugin's options; they are checked against their annotations.
def small_model(
    args: RunArguments, *, architecture: str = "llama", hidden_size: int = 64, num_layers: int = 2
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Build a model for which each byte is a token.

    Args:
        args: The run's arguments: every key of the config is an attribute. A resumed run builds the model again, so
            its weights depend on `args.seed` alone.
        architecture: The `model_type` of a Transformers config.
        hidden_size: Width of the model, a multiple of 4.
        num_layers: Number of decoder layers.

    Returns:
        The model and its tokenizer, a fast one with a chat template.
    """
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=hidden_size // 4,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model, tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-pair encoding without any merges, so that every byte of the UTF-8 text is a token."""
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=["<start>"],
        chat_template=CHAT_TEMPLATE,
    )
