"""A model that needs no download: a tiny Llama and its byte-level tokenizer."""

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD = "<|pad|>"
END = "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
# A number of up to two digits, a word, signs, or white space; numbers, words and signs include the space before them.
PIECES = r" ?\p{N}{1,2}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"
# The words of the arithmetic problems, so that a text has a third as many tokens as bytes.
WORDS = (
    "Step How He She Ana Ben Dan Eva Ida Jon Kim Lea Leo Max Mia Noa Pau Sam Tom Zoe apples are books buys cards coins "
    "cups does eggs finds from gets gives has have keys left loses many more now nuts owns pears pens picks plums "
    "sells shells to with + - ="
)

# A turn has two tokens besides its text: the role and the end. Roles may come in any order.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tiny(
    args: Any,
    *,
    hidden_size: int = 128,
    intermediate_size: int = 384,
    num_layers: int = 3,
    num_heads: int = 4,
    max_length: int = 1024,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A new Llama of about a million random parameters, with a byte-level tokenizer; trains on a CPU in a minute.

    Args:
        args: The run's arguments; `seed` is the seed of the weights. The global random state does not change.
        hidden_size: Width of the residual stream, a multiple of `2 * num_heads`.
        intermediate_size: Width inside the gated MLP.
        num_layers: Number of decoder layers.
        num_heads: Number of attention heads.
        max_length: Longest sequence, in tokens.

    Returns:
        A float32 model and its tokenizer; both are saved and loaded like any Transformers checkpoint.
    """
    tokenizer = byte_tokenizer(max_length)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Larger weights than Llama's, and position frequencies for hundreds of tokens: both shorten the training.
        initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        dtype=torch.float32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        return LlamaForCausalLM(config), tokenizer


def byte_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each byte of UTF-8, each number below 100, each of `WORDS` and each role.

    Text is split into `PIECES`; a piece that is not in the vocabulary becomes its bytes.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    numbers = [str(number) for number in range(100)]
    words = WORDS.split()
    capitalized = [word for word in words if word.istitle()]  # also at the start of a line, without a space
    pieces = [r"\boxed", *numbers, *capitalized, *(f" {word}" for word in [*numbers, *words])]
    encoded = [byte_level.pre_tokenize_str(piece)[0][0] for piece in pieces]
    tokens = dict.fromkeys([PAD, END, *ROLES, *sorted(pre_tokenizers.ByteLevel.alphabet()), *encoded])
    vocab = {token: index for index, token in enumerate(tokens)}
    # Without merges, `ignore_merges` makes a piece one token if the vocabulary has it, and bytes otherwise.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
