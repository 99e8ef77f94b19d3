"""Several hidden states a token (AltUp, Baykal et al., NeurIPS 2023) and a low-rank residual beside the attention
(LAuReL, Menghani et al., 2024), as Gemma 3n has them. Multiply-adds per token; without them, 0.

A layer runs on one hidden state, the active one. Before, a router asks it for a matrix that predicts all of them from
all; behind, it asks the result how much each is corrected.
"""

from __future__ import annotations

from planner.spec.config import Config


def before_attention(config: Config) -> int:
    """Router, its matrix, the predictions; the low-rank residual, which stands on the attention's input."""
    hidden, states = config.size("hidden_size"), _states(config)
    residual = 2 * hidden * config.size("laurel_rank", default=0, least=0)
    return residual + (hidden * states + states**3 + hidden * states**2 if states > 1 else 0)


def behind_feed_forward(config: Config) -> int:
    """Router and the corrections' coefficients."""
    hidden, states = config.size("hidden_size"), _states(config)
    return hidden * states + states**2 if states > 1 else 0


def around_layers(config: Config) -> int:
    """In front of all layers, and once more behind them: a matrix for each hidden state but one."""
    return (_states(config) - 1) * config.size("hidden_size") ** 2


def _states(config: Config) -> int:
    return config.size("altup_num_inputs", default=1)
