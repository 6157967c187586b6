"""What every rollout engine offers: prompts in as ids, sampled ids with their log-probs out.

An engine knows nothing of text, tags or rewards. The ids that it returns are the only truth: nothing downstream
encodes text a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rest_core.records import Rollout


def seed_of_each(
    prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None, temperature: float
) -> Sequence[int | None]:
    """The seed of each prompt's responses; None where the most likely tokens are taken, which needs none.

    Raises:
        ValueError: there is not one seed a prompt to sample with.
    """
    if temperature <= 0:
        return [None] * len(prompts)
    if seeds is None or len(seeds) != len(prompts):
        raise ValueError("sampling needs one seed a prompt")
    return seeds


class Engine(Protocol):
    version: int  # optimizer updates behind the weights that it holds

    def synchronise(self, master: Any, version: int) -> None:
        """Take over the weights of the policy `master`, which are those after `version` updates.

        Adapters are merged on the way; `master` itself is not changed. Rollouts are stamped with this version. Every
        process of a training calls it at the same time: sharded weights are gathered.
        """
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int = 1,
        max_new_tokens: int,
        temperature: float = 1.0,
        batch_tokens: int = 65536,
        seeds: Sequence[int] | None = None,
        on_progress: Callable[[int], None] | None = None,
        continued: bool = False,
    ) -> list[list[Rollout]]:
        """Sample `samples` responses to every prompt; the outer list has the order of `prompts`.

        Args:
            prompts: token ids, one sequence a prompt, none empty.
            samples: responses a prompt (G).
            max_new_tokens: length limit of a response, end-of-sequence token included.
            temperature: 1.0 samples from the policy itself; 0.0 takes the most likely token.
            batch_tokens: at most this many padded tokens are in flight at once: for each prompt, those of the prompt
                (once, where the engine shares it between samples) and of `samples` responses.
            seeds: one a prompt, the source of all randomness in its responses; required when temperature > 0. So
                what is sampled depends neither on batches nor on which process does it.
            on_progress: called with the number of responses that have just been completed.
            continued: later prompts may begin with these and their responses, as in a dialogue: an engine may keep what
                it computed for them.

        Raises:
            NotFiniteLogits: the weights give no distribution to sample from (other engines have errors of their own).
        """
        ...
