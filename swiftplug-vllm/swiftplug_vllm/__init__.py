"""The engine `vllm` for swiftplug, a distribution of its own because vLLM is large and needs a GPU."""
