"""The keys that people know from other tools, and what they are called here."""

import re
from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_TRAINING = "training"
# Keys of LLaMA-Factory, TRL, ms-swift and axolotl, by the key that they are here.
_OTHER_NAMES = {
    "model": "model_name_or_path model_name model_id model_path base_model pretrained_model_name_or_path",
    "dataset": "dataset_name datasets dataset_path data_path train_file train_data train_dataset data_files",
    "eval_dataset": "val_dataset eval_file eval_data validation_file test_datasets eval_datasets",
    "adapter": "adapters adapter_name_or_path lora_model_dir lora_path ckpt_dir",
    "output_dir": "output output_path save_dir",
    "task": "stage rlhf_type rl task_type",
    "loss": "loss_type loss_func",
    "task.beta": "beta pref_beta rl_beta orpo_alpha kl_coef",
    "task.loss": "loss_type importance_sampling_level",
    "task.scale_rewards": "scale_rewards",
    "task.epsilon": "epsilon cliprange clip_ratio_low",
    "task.epsilon_high": "epsilon_high clip_ratio_high",
    "task.num_iterations": "num_iterations num_ppo_epochs ppo_epochs",
    "task.filter_groups": "dynamic_sample max_resample_times",
    "task.mask_cut_off": "mask_truncated_completions overlong_filter",
    "task.importance_cap": "vllm_importance_sampling_clip_max vllm_importance_sampling_cap",
    "task.normalize": "normalize_advantages",
    "task.lam": "lam gae_lambda",
    "task.value_clip": "cliprange_value",
    "task.value_coefficient": "vf_coef",
    "task.loss_type": "loss_type pref_loss",
    "task.label_smoothing": "label_smoothing dpo_label_smoothing",
    "task.rpo_alpha": "rpo_alpha pref_ftx",
    "task.cpo_alpha": "cpo_alpha",
    "task.gamma": "simpo_gamma",
    "task.desirable_weight": "desirable_weight kto_chosen_weight kto_desirable_weight",
    "task.undesirable_weight": "undesirable_weight kto_rejected_weight kto_undesirable_weight",
    "task.center_rewards_coefficient": "center_rewards_coefficient",
    "reference": "ref_model precompute_ref_log_probs reference_free",
    "tuner": "finetuning_type train_type tuner_type use_peft adapter",
    "tuner.r": "r rank lora_rank lora_r",
    "tuner.lora_alpha": "alpha lora_alpha",
    "tuner.lora_dropout": "lora_dropout",
    "tuner.target_modules": "target_modules lora_target lora_target_modules",
    "tools": "agent_template tools_prompt tool_format",
    "plugins.files": "external_plugins custom_register_path plugin_files",
    "data.max_length": "cutoff_len max_seq_length max_seq_len sequence_len model_max_length max_len",
    "data.packing": "sample_packing",
    "data.val_size": "val_set_size split_dataset_ratio test_size",
    "data.mix": "interleave_probs interleave_prob mix_strategy dataset_mixer dataset_weights stopping_strategy",
    "data.shuffle_buffer": "shuffle_buffer_size buffer_size",
    "data.num_proc": "preprocessing_num_workers dataset_num_proc",
    "data.template": "chat_template",
    "model_options.quantization": "load_in_4bit load_in_8bit quantization_bit quant_bits quant_method",
    "model_options.attn_implementation": "attn_impl flash_attn flash_attention",
    "dtype": "torch_dtype precision",
    "training.learning_rate": "lr",
    "training.num_train_epochs": "num_epochs epochs n_epochs",
    "training.per_device_train_batch_size": "batch_size micro_batch_size train_batch_size",
    "training.per_device_eval_batch_size": "eval_batch_size",
    "training.lr_scheduler_type": "lr_scheduler scheduler",
    "engine": "infer_backend sampler_engine use_vllm",
    "engine.base_url": "base_url api_base",
    "orm": "orm_model reward_funcs reward_func reward_function reward_weights",
    "prm": "prm_model",
    "num_return_sequences": "num_generations num_samples n",
    "max_new_tokens": "max_tokens max_completion_length max_gen_toks max_response_length",
    "system": "system_prompt system_message",
}


def counterparts(name: str, keys: Collection[str]) -> list[str]:
    """The keys of a config that a key or option of another tool, or a field of `TrainingArguments`, may be here.

    Args:
        name: The key as typed; hyphens and underscores are alike.
        keys: The keys of the config, with their sections.

    Returns:
        The keys with their sections, most often one; none if the config has none for it.
    """
    name = name.replace("-", "_").lower()
    if name in keys:
        return [name]
    if _TRAINING in keys and name in training_fields():
        return [f"{_TRAINING}.{name}"]
    fitting = [key for key, names in _OTHER_NAMES.items() if name in names.split() and key.partition(".")[0] in keys]
    return fitting or [key for key in keys if key.endswith(f".{name}")][:1]


@cache
def training_fields() -> frozenset[str]:
    """The fields of `transformers.TrainingArguments`, read from its source: importing it takes seconds."""
    spec = find_spec("transformers")
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).with_name("training_args.py").read_text(encoding="utf-8")
    return frozenset(re.findall(r"^    ([a-z]\w*): ", text, re.MULTILINE))
