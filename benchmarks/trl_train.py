"""TRL's side of train_gsm8k.py: `trl_train.py TASK MODEL DATA OUTPUT [--no-checkpointing]`, TASK being sft or dpo."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

task, model_name, data, output, *flags = sys.argv[1:]
rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").splitlines()]
config_class, trainer_class = {"sft": (SFTConfig, SFTTrainer), "dpo": (DPOConfig, DPOTrainer)}[task]


def as_trl_reads(row):
    """The prompt, and the answer or both of them, each as a list of messages."""
    *prompt, answer = row["messages"]
    if task == "sft":
        return {"prompt": prompt, "completion": [answer]}
    return {"prompt": prompt, "chosen": [answer], "rejected": [{**answer, "content": row["rejected_response"]}]}


arguments = config_class(
    output_dir=output,
    per_device_train_batch_size=4,
    num_train_epochs=1,
    learning_rate=1e-4,
    save_strategy="no",
    logging_steps=10,
    logging_first_step=True,
    max_length=2048,
    bf16=False,
    report_to="none",
    gradient_checkpointing="--no-checkpointing" not in flags,
)
trainer = trainer_class(
    model=AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32),
    args=arguments,
    train_dataset=Dataset.from_list([as_trl_reads(row) for row in rows]),
    processing_class=AutoTokenizer.from_pretrained(model_name),
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
)
result = trainer.train()
trainer.save_model(output)
print(json.dumps(result.metrics))
