"""Give a short prompt with low-rank matrices as many parameters as a long prompt."""

from __future__ import annotations

from .._types import SoftPromptError


def equal_budget(
    num_virtual_tokens: int, hidden_size: int, max_positions: int = 256, short: int | None = None
) -> tuple[int, int]:
    """Split the parameters of a P-token prompt into a short prompt of m tokens and low-rank matrices of rank R.

    R is the largest rank with ``m H + R (S_max + H) <= P H``.

    Args:
        num_virtual_tokens: P of the plain prompt, whose number of parameters is the limit.
        hidden_size: H.
        max_positions: S_max.
        short: m; None takes 60 % of P.

    Returns:
        (m, R). (40, 45), (60, 30) and (80, 15) at P = 100, H = 768, S_max = 256, as in DePT (arXiv 2309.05173).

    Raises:
        SoftPromptError: no rank of at least 1 fits.
    """
    m = round(0.6 * num_virtual_tokens) if short is None else short
    rank = (num_virtual_tokens - m) * hidden_size // (max_positions + hidden_size)
    if m < 1 or rank < 1:
        raise SoftPromptError(
            f"a budget of {num_virtual_tokens} virtual tokens leaves m={m} and rank={rank} at hidden_size={hidden_size}, max_positions={max_positions}; "
            "raise num_virtual_tokens or lower short."
        )
    return m, rank
