"""TRL's side of train_gsm8k.py: `trl_train.py sft|dpo|grpo MODEL DATA OUTPUT [--no-checkpointing]`."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from swiftplug.builtin.orms.gsm8k import GSM8K
from swiftplug.plugin import InferRequest

task, model_name, data, output, *flags = sys.argv[1:]
rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").splitlines()]
config_class, trainer_class = {
    "sft": (SFTConfig, SFTTrainer),
    "dpo": (DPOConfig, DPOTrainer),
    "grpo": (GRPOConfig, GRPOTrainer),
}[task]


def as_trl_reads(row):
    """The prompt, and the answer or both of them, each as a list of messages."""
    *prompt, answer = row["messages"]
    if task == "sft":
        return {"prompt": prompt, "completion": [answer]}
    if task == "grpo":
        return {"prompt": prompt, "reference": answer["content"]}
    return {"prompt": prompt, "chosen": [answer], "rejected": [{**answer, "content": row["rejected_response"]}]}


def reward(completions, reference, **_):
    """The same rewards as swiftplug's side gives."""
    return GSM8K()([InferRequest(answer) for answer in completions], list(reference))


of_task = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 8,
    "num_generations": 8,
    "max_completion_length": 128,
    "loss_type": "grpo",
    "logging_steps": 1,
}
arguments = config_class(
    output_dir=output,
    num_train_epochs=1,
    learning_rate=1e-4,
    save_strategy="no",
    logging_first_step=True,
    **(of_task if task == "grpo" else {"per_device_train_batch_size": 4, "logging_steps": 10, "max_length": 2048}),
    bf16=False,
    report_to="none",
    gradient_checkpointing="--no-checkpointing" not in flags,
)
trainer = trainer_class(
    model=AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32),
    args=arguments,
    train_dataset=Dataset.from_list([as_trl_reads(row) for row in rows]),
    processing_class=AutoTokenizer.from_pretrained(model_name),
    **({"reward_funcs": reward} if task == "grpo" else {}),
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
)
result = trainer.train()
trainer.save_model(output)
print(json.dumps(result.metrics))
