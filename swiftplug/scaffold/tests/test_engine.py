from swiftplug.plugin import Prompt, RunArguments, Sampling
from swiftplug.scaffold.package.engine import RandomChoice

PROMPTS = [Prompt(str(number), [{"role": "user", "content": "Is it?"}]) for number in range(50)]


def answers(prompts: list[Prompt], seed: int = 1) -> dict[str, list[str]]:
    engine = RandomChoice(choices=["yes", "no", "maybe"])
    engine.open(RunArguments(), Sampling(4, max_new_tokens=8, temperature=1, top_p=1, top_k=0, seed=seed))
    return {each.id: [completion.text for completion in each.completions] for each in engine.generate(prompts)}


def test_every_prompt_gets_its_candidates() -> None:
    found = answers(PROMPTS)
    assert [len(texts) for texts in found.values()] == [4] * 50
    assert {text for texts in found.values() for text in texts} == {"yes", "no", "maybe"}


def test_the_seed_alone_decides_whatever_the_order() -> None:
    assert answers(PROMPTS[::-1]) == answers(PROMPTS)
    assert answers(PROMPTS, seed=2) != answers(PROMPTS)
