"""TRL's side of train_gsm8k.py: `trl_sft.py MODEL DATA OUTPUT [--no-checkpointing]`."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

model_name, data, output, *flags = sys.argv[1:]
chats = [json.loads(line)["messages"] for line in Path(data).read_text(encoding="utf-8").splitlines()]
rows = [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in chats]
arguments = SFTConfig(
    output_dir=output,
    per_device_train_batch_size=4,
    num_train_epochs=1,
    learning_rate=1e-4,
    save_strategy="no",
    logging_steps=10,
    max_length=2048,
    bf16=False,
    report_to="none",
    gradient_checkpointing="--no-checkpointing" not in flags,
)
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32),
    args=arguments,
    train_dataset=Dataset.from_list(rows),
    processing_class=AutoTokenizer.from_pretrained(model_name),
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
)
result = trainer.train()
trainer.save_model(output)
print(json.dumps(result.metrics))
