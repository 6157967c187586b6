"""ResT as one object: a trainer gets rewards and weights from it, and feeds it entropies.

The trainer applies token weights and losses and knows no tag; everything about tool calls is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from rest_core.algorithm.advantages import group_advantages
from rest_core.algorithm.entropy import RunningRegionEntropy
from rest_core.algorithm.regions import read_response
from rest_core.algorithm.rewards import Reward, tool_reward
from rest_core.algorithm.weights import in_reweighted_region, reads_token_entropies, relative_frequency, token_weights
from rest_core.config import PaperWeights, RlConfig
from rest_core.errors import UserError
from rest_core.records import Tool
from rest_core.response import TAGGED, Response
from rest_core.styles.formats import Tagged
from rest_core.styles.formats.parts import Format


@dataclass(frozen=True)
class Judgement:
    """What is known of one sampled response."""

    response: Response
    reward: Reward
    regions: Tensor  # (T,) codes of Region


class ResT:
    """The algorithm's settings and its only state, the running region entropies.

    Args:
        read_by: parses responses; None = the project's own format.

    Raises:
        UserError: a setting has no meaning in that format.
    """

    def __init__(self, config: RlConfig, tokenizer: Any, read_by: Format | None = None) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.read_by = read_by or Tagged()
        if config.reward_one_call_a_line and self.read_by.dialect is not TAGGED:
            raise UserError(
                "rl.reward_one_call_a_line reads calls as ToolRL writes them; leave it out with other formats"
            )
        self.entropy = RunningRegionEntropy(config.entropy_momentum)

    def read(self, ids: Sequence[int], tools: Sequence[Tool] = ()) -> tuple[Response, Tensor]:
        """The parsed response of sampled ids and its token regions (T,)."""
        return read_response(ids, self.tokenizer, read=partial(self.read_by.parse, tools=tools))

    def judge(self, ids: Sequence[int], reference: str | Response, step: int, tools: Sequence[Tool] = ()) -> Judgement:
        """Parse sampled ids once; reward and regions both come from that parse.

        Args:
            tools: those that may be called, which give the values of some formats their types.
        """
        response, regions = self.read(ids, tools)
        wanted = self.read_by.parse(reference, tools) if isinstance(reference, str) else reference
        reward = tool_reward(
            response,
            wanted,
            scheme=self.config.reward,
            step=step,
            one_call_a_line=self.config.reward_one_call_a_line,
        )
        return Judgement(response, reward, regions)

    def advantages(self, rewards: Tensor, everyone: Tensor | None = None) -> Tensor:
        """(P, G) total rewards → (P, G) advantages; `everyone` are the rewards (P', G) of all processes, if not all."""
        return group_advantages(rewards, std=self.config.advantage_std, everyone=everyone)

    def wants_entropies(self, regions: Tensor, mask: Tensor) -> bool:
        """Whether `weights` will read the entropies of the policy that sampled these tokens, (B, T) each."""
        scheme = self.config.weights
        if isinstance(scheme, PaperWeights):
            return self.entropy.lacks(regions, mask & in_reweighted_region(regions))
        return reads_token_entropies(scheme)

    def weights(
        self,
        ids: Tensor,
        regions: Tensor,
        mask: Tensor,
        entropies: Tensor | None,
        step: int,
        *,
        total_steps: int | None = None,
    ) -> Tensor:
        """Weights (B, T) of a whole rollout, all tensors (B, T); `total_steps` are `config.steps` where not given.

        `entropies` are those of the policy that sampled, needed where `wants_entropies`: a region that no training
        forward has seen yet takes the mean over its tokens in this rollout; the schemes that go by token take each
        token's own.
        """
        running = self.entropy.mean if entropies is None else self.entropy.filled(entropies, regions, mask)
        return token_weights(
            regions,
            mask,
            scheme=self.config.weights,
            step=step,
            total_steps=total_steps or self.config.steps,
            region_entropy=running,
            token_entropy=entropies,
            token_frequency=relative_frequency(ids, mask),
            mean=self.config.weight_mean,
        )

    def observe(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Take in one step's entropy sums and counts by region; returns the step's means (len(Region),)."""
        return self.entropy.update(sums, counts)
