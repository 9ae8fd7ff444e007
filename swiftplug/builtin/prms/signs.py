"""One way to write the signs of arithmetic."""

import re

_SIGNS = (
    {full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)}
    | str.maketrans("−×✕⋅∙÷≅≃{}[]", "-****/≈≈()()")
    | str.maketrans({"²": "^2", "³": "^3"})
    | dict.fromkeys(map(ord, "$€£¥￥₹"), " ")
)
_LATEX_SIGNS = {"times": "*", "cdot": "*", "div": "/", "approx": "≈", "dfrac": r"\frac", "tfrac": r"\frac"}
_LATEX = re.compile(r"\\(times|cdot|div|approx|dfrac|tfrac|left|right|boxed)(?![a-zA-Z])|\\[,;! $]|\\(?=%)")
_FRACTION = re.compile(r"\\frac\{([^{}]*)\}\{([^{}]*)\}")
_LIST_MARK = re.compile(r"^[ \t]*(?:[-*•·]|\d{1,3}[.)])[ \t]+", re.MULTILINE)
_TIMES = re.compile(r"(?<=[\d)%])[ \t]*[xX·][ \t]*(?=[\d(.])")
_POWER_OR_BOLD = re.compile(r"(?P<power>(?<=[\d)])\*\*(?=[\d(]))|\*\*")
_ARROW = re.compile(r"[-=]{1,3}>")
_TIME = re.compile(r"(?<!\d)\d+(?::\d+)+")
_PER = re.compile(r"/[ \t]*(?=[^\W\d_])")


def plain(text: str) -> str:
    r"""A text with one sign for each operation, and without the marks of lists and of bold type; its lines stay.

    Multiplication is `*`, division `/`, a power `^`, near equality `≈`; every parenthesis is round. Currency signs are
    left out, and so is what is written with such signs but calculates nothing: times of day, arrows, `miles / hour`.

    Args:
        text: An answer, in Markdown and LaTeX or without.

    Example:
        >>> plain(r"- **Total:** 3 × 4 = \frac{24}{2}")
        'Total: 3 * 4 = ((24)/(2))'
    """
    if "\\" in text:
        text = _LATEX.sub(lambda command: _LATEX_SIGNS.get(command[1] or "", ""), text)
        text = _FRACTION.sub(r"((\1)/(\2))", text)
    text = _LIST_MARK.sub("", text).replace("{,}", ",").translate(_SIGNS)
    text = _POWER_OR_BOLD.sub(lambda stars: "^" if stars["power"] else "", _TIMES.sub("*", text))
    return _PER.sub(" per ", _TIME.sub("time", _ARROW.sub(";", text)))
