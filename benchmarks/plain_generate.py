"""Plain Transformers in sample_gsm8k.py, one batched call: `plain_generate.py MODEL DATA CANDIDATES TOKENS OUTPUT`."""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model_name, data, candidates, max_new_tokens, output = sys.argv[1:]
chats = [json.loads(line)["messages"][:-1] for line in Path(data).read_text(encoding="utf-8").splitlines()]
tokenizer = AutoTokenizer.from_pretrained(model_name, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
torch.manual_seed(42)
started = time.monotonic()
inputs = tokenizer.apply_chat_template(
    chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
)
generated = model.generate(
    **inputs,
    do_sample=True,
    temperature=1.0,
    top_k=0,
    num_return_sequences=int(candidates),
    max_new_tokens=int(max_new_tokens),
)
texts = tokenizer.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
print(f"generated in {time.monotonic() - started:.2f} s")
Path(output).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
