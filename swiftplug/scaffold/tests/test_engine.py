from swiftplug.plugin import Prompt, RunArguments, Sampling
from swiftplug.scaffold.package.engine import RandomChoice


def test_every_prompt_gets_its_candidates() -> None:
    engine = RandomChoice(choices=["yes", "no", "maybe"])
    engine.open(RunArguments(), Sampling(4, max_new_tokens=8, temperature=1, top_p=1, top_k=0, seed=1))
    prompts = [Prompt(str(number), [{"role": "user", "content": "Is it?"}]) for number in range(50)]
    answers = {each.id: [completion.text for completion in each.completions] for each in engine.generate(prompts)}
    assert [len(texts) for texts in answers.values()] == [4] * 50
    assert {text for texts in answers.values() for text in texts} == {"yes", "no", "maybe"}
