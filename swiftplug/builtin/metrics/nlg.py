"""Overlap of generated answers with the references: ROUGE and BLEU, also for Chinese."""

import logging
import re
from statistics import fmean

import jieba
from pydantic import PositiveInt
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

# Scripts written without spaces: kana, CJK ideographs with their extensions and compatibility forms.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_PIECE = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")


class NLG:
    """ROUGE-1, ROUGE-2, ROUGE-L (mean F1) and corpus BLEU-4 of generated answers, from 0 to 100.

    BLEU is sacrebleu's with its defaults. Its tokenizer is `zh` if a reference has Chinese characters, else `13a`, so
    the number is the one that sacrebleu's command line prints.
    """

    generate = True

    def __init__(self, max_new_tokens: PositiveInt = 256) -> None:
        """Set the length of answers.

        Args:
            max_new_tokens: Maximum length of a generated answer, in tokens.
        """
        self.max_new_tokens = max_new_tokens
        self._rouge = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_WordTokenizer())

    def __call__(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        """The scores `rouge1`, `rouge2`, `rougeL` and `bleu4`; an empty answer scores 0."""
        rouge = [
            self._rouge.score(reference, answer) for reference, answer in zip(references, predictions, strict=True)
        ]
        chinese = any(re.search("[\u4e00-\u9fff]", reference) for reference in references)
        bleu = BLEU(tokenize="zh" if chinese else "13a").corpus_score(predictions, [references])
        means = {name: 100 * fmean(score[name].fmeasure for score in rouge) for name in ("rouge1", "rouge2", "rougeL")}
        return {**means, "bleu4": bleu.score}


class _WordTokenizer:
    """Words for ROUGE: rouge_score's own for English, without its stemmer; jieba's where there are no spaces."""

    def __init__(self) -> None:
        jieba.setLogLevel(logging.WARNING)
        self._cut = jieba.Tokenizer().lcut

    def tokenize(self, text: str) -> list[str]:
        words: list[str] = []
        for piece in _PIECE.findall(text.lower()):
            words += self._cut(piece) if re.match(f"[{_UNSPACED}]", piece) else [piece]
        return words
