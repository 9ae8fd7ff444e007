"""TRL's side of train_gsm8k.py and gpu.py: a run with rows of ours, logged in `log.jsonl` as ours is."""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from turn import Turn

from swiftplug.builtin.callbacks.perf_log import PerfLog
from swiftplug.builtin.orms.gsm8k import GSM8K
from swiftplug.builtin.orms.text_shape import Length
from swiftplug.plugin import InferRequest

CONFIGS = {"sft": (SFTConfig, SFTTrainer), "dpo": (DPOConfig, DPOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}
OF_GSM8K = {"num_train_epochs": 1, "learning_rate": 1e-4, "bf16": False}
OF_TASK = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 8,
    "num_generations": 8,
    "max_completion_length": 128,
    "loss_type": "grpo",
    "logging_steps": 1,
}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("task", choices=CONFIGS)
parser.add_argument("model", help="folder or hub id")
parser.add_argument("data", type=Path, help="JSONL file")
parser.add_argument("output", type=Path, help="folder")
parser.add_argument("--no-checkpointing", action="store_true")
parser.add_argument("--full", action="store_true", help="train all weights, not a LoRA of rank 8")
parser.add_argument("--dtype", default="float32", help="of the weights that are loaded")
parser.add_argument("--attention", help="the attention kernel, by Transformers' name")
parser.add_argument("--max-chars", type=int, help="for grpo: reward short answers, as the ORM `length` does")
parser.add_argument("--fields", type=json.loads, help="fields of TRL's config, in JSON")
options = parser.parse_args()
task, config_class, trainer_class = options.task, *CONFIGS[options.task]
rows = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()]
orm = Length(options.max_chars, options.max_chars) if options.max_chars else GSM8K()


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
    return orm([InferRequest(answer) for answer in completions], list(reference))


of_task = OF_TASK if task == "grpo" else {"per_device_train_batch_size": 4, "logging_steps": 10, "max_length": 2048}
arguments = config_class(
    output_dir=str(options.output),
    save_strategy="no",
    logging_first_step=True,
    include_num_input_tokens_seen="non_padding",
    report_to="none",
    use_cpu=not torch.accelerator.is_available(),
    gradient_checkpointing=not options.no_checkpointing,
    **(OF_GSM8K | of_task | (options.fields or {})),
)
trainer = trainer_class(
    model=AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype), attn_implementation=options.attention
    ),
    args=arguments,
    train_dataset=Dataset.from_list([as_trl_reads(row) for row in rows]),
    processing_class=AutoTokenizer.from_pretrained(options.model),
    callbacks=[Turn(), PerfLog()],
    **({"reward_funcs": reward} if task == "grpo" else {}),
    peft_config=None
    if options.full
    else LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
)
result = trainer.train()
trainer.save_model(str(options.output))
log = "".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history)
(options.output / "log.jsonl").write_text(log, encoding="utf-8")
