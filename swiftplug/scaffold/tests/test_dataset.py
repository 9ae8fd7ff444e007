from swiftplug.scaffold.package.dataset import count_letters


def test_answers_are_right() -> None:
    rows = count_letters(size=20, length=5)
    assert len(rows) == 20
    for question, answer in rows["messages"]:
        word = question["content"].removeprefix("How many a in ").removesuffix("?")
        assert len(word) == 5
        assert answer["content"] == str(sum(letter == "a" for letter in word))
