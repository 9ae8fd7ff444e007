"""The contract of an engine."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel

from swiftplug.config.schema import SampleConfig
from swiftplug.data.read.conversation import RowError
from swiftplug.errors import ContractError, UserError
from swiftplug.plugin import Answered, Completion, Engine, Prompt, Sampling
from swiftplug.plugin.registry import LoadedPlugin, Registry
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.plugins import RunPlugins, resolve_plugins
from swiftplug.sampling.rows import check_encodable
from swiftplug.testing.inputs import load, on
from swiftplug.testing.tiny import MODEL, TinyRun

_PROMPTS = (
    Prompt("one", [{"role": "user", "content": "What is 2 + 2?"}]),
    Prompt("two", [{"role": "system", "content": "简短。"}, {"role": "user", "content": "二加二等于几?👍"}]),
    Prompt(
        "three",
        [
            {"role": "user", "content": "Hi."},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "What is 3 + 3?"},
        ],
    ),
)
_SAMPLING = Sampling(num_return_sequences=2, max_new_tokens=6, temperature=1.0, top_p=1.0, top_k=0, seed=42)

_GREEDY = _SAMPLING._replace(num_return_sequences=1, temperature=0.0)

_Answers = dict[str, Sequence[Completion]]


def check(plugin: LoadedPlugin) -> None:
    """Draw candidates of a few prompts, together and alone, from several instances of it and models in training."""
    with TemporaryDirectory() as folder:
        drawing = _Drawing(plugin, Path(folder))
        together = drawing.draw(_PROMPTS, "three prompts")
        again = drawing.draw(_PROMPTS, "three prompts once more")
        _compare(
            together, again, "the second time", "let its random numbers depend on sampling.seed_of(id, index) alone"
        )
        if not plugin.bound.together:
            alone = {
                key: value for it in _PROMPTS for key, value in drawing.draw([it], f"prompt {it.id!r} alone").items()
            }
            what = "draw each candidate by sampling.seed_of(id, index), or set together = True"
            _compare(together, alone, "alone", what)
            backwards = drawing.draw(_PROMPTS[::-1], "three prompts in another order")
            _compare(together, backwards, "in another order of the prompts", what)
        single = drawing.draw(_PROMPTS[:1], "one candidate each", _SAMPLING._replace(num_return_sequences=1))
        if not plugin.bound.together:
            _compare({"one": together["one"][:1]}, single, "as the only candidate", "let it depend on its index alone")
        drawing.draw(_PROMPTS[:1], "a temperature of 0", _SAMPLING._replace(temperature=0.0))
    for tuner in ("full", "lora") if plugin.bound.follows else ():
        with TemporaryDirectory() as folder, on(f"a model in training, tuner {tuner}"):
            _Following(plugin, TinyRun(plugin, folder, tuner=f"swiftplug:{tuner}")).check()


class _Drawing:
    """Draws candidates with an engine, anew for each call."""

    def __init__(self, plugin: LoadedPlugin, folder: Path) -> None:
        config = SampleConfig.model_validate(
            {"model": MODEL, "output_dir": str(folder / "run"), "plugins": {"allow": []}, "max_new_tokens": 6}
        )
        by_kind = {**resolve_plugins(config, ["model", "tools"]).by_kind, "engine": [plugin]}
        self.plugin = plugin
        self.args = Arguments(config, RunPlugins(Registry.discover(allow=[]), by_kind))
        self.args.check_plugins()

    def draw(self, prompts: Sequence[Prompt], what: str, sampling: Sampling = _SAMPLING) -> _Answers:
        """The candidates of some prompts, by their ids; raises a ContractError if they are not what was asked."""
        engine: Engine = load(self.plugin.found, self.plugin.options).bound
        with on(f"{what} (close without open, as after an open that failed)"):
            engine.close()
        given = [prompt._replace(messages=deepcopy(prompt.messages)) for prompt in prompts]
        with on(what):
            try:
                engine.open(self.args, sampling)
                at_once = engine.prompts_at_once(sampling)
                if not isinstance(at_once, int) or at_once < 1:
                    raise ContractError(f"returned {at_once!r} from prompts_at_once, expected a number of at least 1")
                answers = [
                    answered
                    for start in range(0, len(given), at_once)
                    for answered in engine.generate(given[start : start + at_once])
                ]
                with on("no prompts"):
                    rest = list(engine.generate([]))
                if rest:
                    raise ContractError(f"yields {rest[0]!r:.60} for no prompts")
            finally:
                engine.close()
                engine.close()
            if given != list(prompts):
                raise ContractError("changes the prompts that it gets; work on a copy")
            return _checked(answers, prompts, sampling)


class _Following:
    """Draws candidates with an engine that follows a model in training."""

    def __init__(self, plugin: LoadedPlugin, run: TinyRun) -> None:
        self.engine: Engine = load(plugin.found, plugin.options).bound
        self.args = run.args
        self.model: Any = run.model().train()
        inner: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        inner.get_input_embeddings().eval()  # what trains and what does not must stay so
        self.chat = run.args.load_chat(inner)
        self.prompts = [self.chat.encode(prompt) for prompt in _PROMPTS]

    def check(self) -> None:
        """Raise a ContractError if the engine draws from other weights, or changes the model."""
        try:
            self.engine.follow(self.args, self.model)
            for number in range(2):
                self._train(number)
                greedy = self._check_greedy()
            together = self._draw(_PROMPTS, _SAMPLING)
            what = "draw each candidate by sampling.seed_of(id, index)"
            _compare(together, self._draw(_PROMPTS, _SAMPLING), "the second time", what)
            _compare(together, self._draw(_PROMPTS[::-1], _SAMPLING), "in another order of the prompts", what)
            ids, _ = self.prompts[0]
            longer = _PROMPTS[0]._replace(ids=[*ids, *greedy[:1]], max_new_tokens=2)
            [continued] = self._draw([longer], _GREEDY)["one"]
            if list(continued.ids) != greedy[1:3]:
                raise ContractError(
                    f"continues Prompt.ids for max_new_tokens = 2 with {list(continued.ids)}, expected {greedy[1:3]}"
                )
        finally:
            self.engine.close()

    def _train(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn(parameter.shape, generator=generator)

    def _check_greedy(self) -> list[int]:
        """Compare greedy candidates with those of Transformers; return those of the first prompt."""
        drawn = self._draw(_PROMPTS, _GREEDY)
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        expected: dict[str, list[int]] = {}
        for prompt, (ids, _) in zip(_PROMPTS, self.prompts, strict=True):
            output = self.model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False,
                max_new_tokens=_GREEDY.max_new_tokens,
                eos_token_id=self.chat.end_ids,
                pad_token_id=self.chat.end_ids[0],
            )
            expected[prompt.id] = output[0, len(ids) :].tolist()
        for module, mode in modes.items():
            module.training = mode
        for key, ids in expected.items():
            if (found := list(drawn[key][0].ids)) != ids:
                raise ContractError(
                    f"draws {found} for the prompt {key!r} at a temperature of 0, where Transformers draws {ids}; draw "
                    "with the weights as they are now, and give all tokens in `ids`, the one that ends it too"
                )
        return expected[_PROMPTS[0].id]

    def _draw(self, prompts: Sequence[Prompt], sampling: Sampling) -> _Answers:
        bits = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        modes = {name: module.training for name, module in self.model.named_modules()}
        drawn = _checked(list(self.engine.draw(prompts, sampling)), prompts, sampling)
        self.engine.rest()
        after = self.model.state_dict()
        if after.keys() != bits.keys() or not all(torch.equal(bits[name], after[name]) for name in bits):
            raise ContractError("changes the weights of the model; leave every bit as it was")
        if {name: module.training for name, module in self.model.named_modules()} != modes:
            raise ContractError("leaves the model in another mode; give each module its own mode back")
        opened = dict(zip((prompt.id for prompt in _PROMPTS), (text for _, text in self.prompts), strict=True))
        for key, completions in drawn.items():
            for completion in completions:
                text = self.chat.answer(completion.ids, opened[key])
                if text != completion.text:
                    raise ContractError(
                        f"gives the prompt {key!r} the text {completion.text!r:.40}, but `ids` of {text!r:.40}"
                    )
                at_end = completion.ids[-1:] and completion.ids[-1] in self.chat.end_ids
                if completion.finish_reason == "stop" and not at_end and not self.chat.has_stopped(completion.ids):
                    raise ContractError("leaves the token that ended a candidate out of its `ids`")
                if completion.logps and len(completion.logps) != len(completion.ids):
                    raise ContractError(f"gives {len(completion.logps)} logps for {len(completion.ids)} ids")
        return drawn


def _checked(answers: Sequence[Any], prompts: Sequence[Prompt], sampling: Sampling) -> _Answers:
    """The candidates by the ids of the prompts; raises a ContractError if they are not what was asked."""
    return {answered.id: _completions(answered, sampling) for answered in _complete(answers, prompts)}


def _complete(answers: Sequence[Any], prompts: Sequence[Prompt]) -> Sequence[Answered]:
    """The answers, one for each prompt."""
    for answered in answers:
        if not isinstance(answered, Answered):
            raise ContractError(f"yields a {type(answered).__name__}, expected an Answered for each prompt")
    ids, expected = sorted(answered.id for answered in answers), sorted(prompt.id for prompt in prompts)
    if ids != expected:
        raise ContractError(f"answers the prompts {ids}, but was asked {expected}; answer each of them once")
    return answers


def _completions(answered: Answered, sampling: Sampling) -> Sequence[Completion]:
    count = sampling.num_return_sequences
    if answered.failure:
        raise UserError(f"fails on the prompt {answered.id!r}: {answered.failure}")
    if len(answered.completions) != count:
        raise ContractError(
            f"gives the prompt {answered.id!r} {len(answered.completions)} candidates, expected {count} "
            "(sampling.num_return_sequences), or a failure"
        )
    for completion in answered.completions:
        if not isinstance(completion, Completion) or not isinstance(completion.text, str):
            raise ContractError(f"gives {completion!r:.60}, expected a Completion(text, finish_reason)")
        if not isinstance(completion.finish_reason, str) or not completion.finish_reason:
            raise ContractError(
                f"gives the finish_reason {completion.finish_reason!r}, expected 'stop', 'length' or what a server "
                "reports"
            )
        try:
            check_encodable(completion.text)
        except RowError as error:
            raise ContractError(f"gives a text that cannot be written: {error}") from error
    return answered.completions


def _compare(one: _Answers, other: _Answers, when: str, what: str) -> None:
    for key, completions in other.items():
        for index, (first, second) in enumerate(zip(one[key], completions, strict=True)):
            if first != second:
                raise ContractError(
                    f"gives candidate {index} of the prompt {key!r} as {first.text!r:.40}, and as {second.text!r:.40} "
                    f"{when}; {what}"
                )
