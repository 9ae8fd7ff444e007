"""Plain Transformers for sample_gsm8k.py and gpu.py, one batched call, on the GPU if there is one.

`plain_generate.py MODEL DATA CANDIDATES TOKENS OUTPUT [DTYPE]`
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from turn import take_turn

from swiftplug.builtin.hardware import pick_device

model_name, data, candidates, max_new_tokens, output, *dtype = sys.argv[1:]
chats = [json.loads(line)["messages"][:-1] for line in Path(data).read_text(encoding="utf-8").splitlines()]
tokenizer = AutoTokenizer.from_pretrained(model_name, padding_side="left")
take_turn()
device = pick_device()
model = AutoModelForCausalLM.from_pretrained(model_name, dtype=getattr(torch, dtype[0] if dtype else "float32"))
model.to(device)
torch.manual_seed(42)


def generate(chats, tokens):
    """Texts, as many tokens of each."""
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    ).to(device)
    generated = model.generate(
        **inputs,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        num_return_sequences=int(candidates),
        max_new_tokens=tokens,
    )
    return tokenizer.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


if device.type != "cpu":
    generate(chats, 8)  # what a GPU does at first only
started = time.monotonic()
texts = generate(chats, int(max_new_tokens))
print(f"generated in {time.monotonic() - started:.2f} s")
if device.type == "cuda":
    print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.3f} GiB")
Path(output).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
