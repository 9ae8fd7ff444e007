"""Preference objectives: on pairs of a better and a worse answer, and on answers that are rated good or bad.

All say what their loss is for one pair, or one answer. Log-probabilities are those of an answer's trained tokens; with
a reference model, a ratio is the log-probability under the model minus that under the reference.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch.nn.functional import logsigmoid

from swiftplug.plugin import (
    IGNORED_LABEL,
    Batch,
    PreferenceTask,
    Rows,
    SequenceLogps,
    Task,
    TaskLoss,
    TaskModel,
    UserError,
    nearest,
)

_LOSS_TYPES = ("sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down")
# What other tools name as a type of the DPO loss, and its name here.
_ELSEWHERE = {
    "sigmoid_norm": "loss_type sigmoid with length_normalization: true",
    "sft": "rpo_alpha, the weight of that share",
    **{name: f"task {name}" for name in ("cpo", "simpo", "orpo", "kto")},
    "kto_pair": "task kto, which takes pairs apart",
}


class DPO(PreferenceTask):
    """Direct preference optimisation, Rafailov et al., arXiv 2305.18290, and its relatives.

    The formulas of `loss_type`, where c and r are the ratios of the chosen and the rejected answer:

    - `sigmoid`: `-log sigmoid(beta * (c - r))`, that of DPO. With `label_smoothing` s it is conservative DPO (Mitchell,
      https://ericmitchell.ai/cdpo.pdf): `(1 - s)` of it, and `s` of the loss of the flipped pair.
    - `hinge`: `max(0, 1 - beta * (c - r))`, SLiC-HF (arXiv 2305.10425) on ratios, as in RSO (arXiv 2309.06657).
    - `ipo`: `(c - r - 1 / (2 * beta))^2` with ratios per token, arXiv 2310.12036; beta is the paper's tau.
    - `robust`: what remains of `sigmoid` when a share `label_smoothing` of the pairs is flipped, arXiv 2403.00409.
    - `apo_zero`: `sigmoid(-beta * c) + sigmoid(beta * r)`, for chosen answers that are better than the model's own;
      arXiv 2408.06266.
    - `apo_down`: `sigmoid(beta * c) + sigmoid(-beta * (c - r))`, for chosen answers that are worse; same paper.

    Args:
        beta: How strongly the model is held to the reference.
        loss_type: The loss of a pair.
        label_smoothing: The probability that a pair is labelled the wrong way round, for `sigmoid` and `robust`.
        rpo_alpha: The weight of a further share of the loss: the negative log-likelihood of the chosen answers, per
            token (RPO, arXiv 2404.19733).
        length_normalization: Whether to divide each ratio by the number of trained tokens (length-normalised DPO, as in
            Tulu 3, arXiv 2411.15124).

    Raises:
        UserError: There is no such loss type, or an option has no meaning for it.
    """

    def __init__(
        self,
        beta: PositiveFloat = 0.1,
        loss_type: str = "sigmoid",
        label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
        rpo_alpha: NonNegativeFloat = 0.0,
        length_normalization: bool = False,
    ) -> None:
        if loss_type not in _LOSS_TYPES:
            other = _ELSEWHERE.get(loss_type.lower())
            hint = f"; use {other}" if other else nearest(loss_type, _LOSS_TYPES)
            raise UserError(f"dpo: there is no loss_type {loss_type!r}{hint}")
        if loss_type == "robust" and not label_smoothing:
            raise UserError(
                "dpo: loss_type robust needs label_smoothing, the share of flipped pairs, above 0 and below 0.5"
            )
        if label_smoothing and loss_type not in ("sigmoid", "robust"):
            raise UserError(f"dpo: label_smoothing acts with loss_type sigmoid and robust, not with {loss_type}")
        if length_normalization and loss_type == "ipo":
            raise UserError("dpo: loss_type ipo takes ratios per token already; drop length_normalization")
        self.beta = beta
        self.loss_type = loss_type
        self.label_smoothing = label_smoothing
        self.nll_weight = rpo_alpha
        self.per_token = length_normalization or loss_type == "ipo"

    def pair_loss(self, chosen: SequenceLogps, rejected: SequenceLogps) -> torch.Tensor:
        """The loss of `loss_type`."""
        better, worse = (
            answers.ratios / answers.lengths if self.per_token else answers.ratios for answers in (chosen, rejected)
        )
        margin, flipped = self.beta * (better - worse), self.label_smoothing
        match self.loss_type:
            case "hinge":
                return torch.relu(1 - margin)
            case "ipo":
                return (better - worse - 1 / (2 * self.beta)).square()
            case "robust":
                return (flipped * logsigmoid(-margin) - (1 - flipped) * logsigmoid(margin)) / (1 - 2 * flipped)
            case "apo_zero":
                return torch.sigmoid(-self.beta * better) + torch.sigmoid(self.beta * worse)
            case "apo_down":
                return torch.sigmoid(self.beta * better) + torch.sigmoid(-margin)
        return -(1 - flipped) * logsigmoid(margin) - flipped * logsigmoid(-margin)


class CPO(PreferenceTask):
    """Contrastive preference optimisation, Xu et al., arXiv 2401.08417: DPO with a uniform reference.

    Args:
        beta: The factor of the log-probabilities.
        cpo_alpha: The weight of the negative log-likelihood of the chosen answers, per token.
    """

    needs_reference = False

    def __init__(self, beta: PositiveFloat = 0.1, cpo_alpha: NonNegativeFloat = 1.0) -> None:
        self.beta = beta
        self.nll_weight = cpo_alpha

    def pair_loss(self, chosen: SequenceLogps, rejected: SequenceLogps) -> torch.Tensor:
        """`-log sigmoid(beta * (log p(chosen) - log p(rejected)))`."""
        return -logsigmoid(self.beta * (chosen.logps - rejected.logps))


class SimPO(PreferenceTask):
    """Simple preference optimisation, Meng et al., arXiv 2405.14734: the reward is the log-probability per token.

    Args:
        beta: The factor of the rewards; the paper's values are 2 to 10.
        gamma: The margin by which the reward of the chosen answer should be the higher one. It is the paper's gamma;
            the authors' code takes it divided by beta (`gamma_beta_ratio`) and advises 0.5.
    """

    needs_reference = False

    def __init__(self, beta: PositiveFloat = 2.0, gamma: NonNegativeFloat = 1.0) -> None:
        self.beta = beta
        self.gamma = gamma

    def reward(self, answers: SequenceLogps) -> torch.Tensor:
        """The log-probability per token, times beta."""
        return self.beta * answers.means

    def pair_loss(self, chosen: SequenceLogps, rejected: SequenceLogps) -> torch.Tensor:
        """`-log sigmoid(reward of the chosen - reward of the rejected answer - gamma)`."""
        return -logsigmoid(self.reward(chosen) - self.reward(rejected) - self.gamma)


class ORPO(PreferenceTask):
    """Odds ratio preference optimisation, Hong et al., arXiv 2403.07691: fine-tuning that penalises rejected answers.

    Args:
        beta: The weight of the odds ratio, the paper's lambda.
        nll_on_prompt: Whether the negative log-likelihood is that of prompt and chosen answer, whatever the weights of
            tokens, and not, as in the paper's formula, of the answer's trained tokens alone. The authors' code and TRL
            include the prompt.
    """

    needs_reference = False
    nll_weight = 1.0

    def __init__(self, beta: NonNegativeFloat = 0.1, nll_on_prompt: bool = False) -> None:
        self.beta = beta
        self.trains_prompt = nll_on_prompt

    def reward(self, answers: SequenceLogps) -> torch.Tensor:
        """The log-probability per token, times beta."""
        return self.beta * answers.means

    def pair_loss(self, chosen: SequenceLogps, rejected: SequenceLogps) -> torch.Tensor:
        """`-beta * log sigmoid(log odds of the chosen - log odds of the rejected answer)`."""
        return -self.beta * logsigmoid(_log_odds(chosen.means) - _log_odds(rejected.means))

    def counts(self, batch: Batch) -> dict[str, Any]:
        """Pairs, and the tokens of chosen answers, or of the conversations that end in them."""
        return super().counts(_with_prompt(batch) if self.trains_prompt else batch)

    def loss(self, model: TaskModel, batch: Batch) -> TaskLoss:
        """The loss of `PreferenceTask`, in which the likelihood may be that of the whole text."""
        computed = super().loss(model, batch)
        if self.trains_prompt:
            [texts] = model.sequence_logps(_with_prompt(batch), [0])
            computed.sums["chosen tokens"] = -texts.logps.sum()
        return computed


class KTO(Task):
    """Kahneman-Tversky optimisation, Ethayarajh et al., arXiv 2402.01306, on answers that are rated good or bad.

    With the reward `beta * ratio` of an answer, a good one costs `1 - sigmoid(reward - z)` and a bad one
    `1 - sigmoid(z - reward)`, each times its weight. z is `beta` times an estimate of how far the model is from the
    reference: the mean ratio of answers to other prompts, over a batch of all processes, and at least 0. So, as in the
    paper, the loss depends on the batch; it needs one of several rows.

    Args:
        beta: How strongly the model is held to the reference.
        loss_type: `kto`, or `apo_zero_unpaired` (arXiv 2408.06266), for which z is 0.
        desirable_weight: The weight of good answers.
        undesirable_weight: The weight of bad answers.
    """

    rows = Rows.RATED
    kinds = frozenset({"loss_scale"})
    needs_reference = True

    def __init__(
        self,
        beta: PositiveFloat = 0.1,
        loss_type: Literal["kto", "apo_zero_unpaired"] = "kto",
        desirable_weight: NonNegativeFloat = 1.0,
        undesirable_weight: NonNegativeFloat = 1.0,
    ) -> None:
        self.beta = beta
        self.loss_type = loss_type
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight

    def check_data(self, dataset: Any) -> Iterator[str]:
        """Say what weights the paper advises (equation 8) where good and bad answers are far from balanced."""
        ratings = dataset["rating"][:]
        good, bad = sum(ratings), len(ratings) - sum(ratings)
        if not good or not bad:
            yield f"task kto: no answer is rated {'bad' if good else 'good'}; KTO learns from both"
        elif not 0.5 <= self.desirable_weight * good / max(self.undesirable_weight * bad, 1e-9) <= 2:
            least = self.undesirable_weight * bad / good, self.desirable_weight * good / bad * 3 / 4
            yield (
                f"task kto: {good} good and {bad} bad answers; to balance them, the paper advises a "
                f"task.desirable_weight of {least[0]:.3g} to {least[0] * 4 / 3:.3g}, or a task.undesirable_weight of "
                f"{least[1]:.3g} to {least[1] * 4 / 3:.3g}"
            )

    def log_names(self) -> Iterable[str]:
        """Rewards and log-probabilities of good (chosen) and bad (rejected) answers, and the estimated divergence."""
        return "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected", "kl"

    def loss(self, model: TaskModel, batch: Batch) -> TaskLoss:
        """The sum of the answers' losses."""
        kl = torch.zeros(())
        if self.loss_type == "kto":
            with torch.no_grad():
                [mismatched] = model.sequence_logps(batch, [1])
            kl = model.mean(mismatched.ratios).clamp(min=0)
        [answers] = model.sequence_logps(batch, [0])
        is_good, rewards, logps = batch["rating"], self.beta * answers.ratios, answers.logps.detach()
        above = rewards - self.beta * kl
        losses = 1 - torch.sigmoid(torch.where(is_good, above, -above))
        weights = torch.where(is_good, self.desirable_weight, self.undesirable_weight)
        good, bad = rewards.detach()[is_good], rewards.detach()[~is_good]
        logged = {
            "rewards/chosen": good,
            "rewards/rejected": bad,
            "rewards/margins": good.mean() - bad.mean() if len(good) and len(bad) else good[:0],
            "logps/chosen": logps[is_good],
            "logps/rejected": logps[~is_good],
            "kl": kl,
        }
        return TaskLoss({"rows": (weights * losses).sum()}, logged)


def _log_odds(logps: torch.Tensor) -> torch.Tensor:
    """`log(p / (1 - p))`; the odds of a p that rounds to 1 are infinite, and their gradient is not a number."""
    logps = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    return logps - torch.log(-torch.expm1(logps))


def _with_prompt(batch: Batch) -> dict[str, Any]:
    """A batch of which every token trains."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED_LABEL)
    return {**batch, "labels": labels}
