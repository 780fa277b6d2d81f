"""Interpolated Kneser-Ney n-grams over token ids: what a language model without a neural network makes of a corpus."""

from __future__ import annotations

import numpy as np


class NGrams:
    """``P_n(w | h) = max(c(h w) - d_n, 0) / c(h) + d_n N(h) / c(h) P_{n-1}(w | h')``, down to the uniform distribution.

    h' is h without its first token; N(h) counts the tokens that follow h. Counts of the longest n-grams are those of the text, of
    shorter ones how many different tokens stand before them (Kneser and Ney 1995). ``d_n = n_1 / (n_1 + 2 n_2)`` with n_1 and n_2
    n-grams of count one and two, or 0.5 where none is of count one. Shapes: tokens [N] of ids below ``vocabulary``; N < 2^40 / vocabulary.

    An n-gram is one number: its first n - 1 tokens' number times the vocabulary plus its last token; numbers are ranks among those
    that the text has, so they stay small at every n.
    """

    def __init__(self, tokens: np.ndarray, vocabulary: int, order: int = 5):
        self.vocabulary, self.order = vocabulary, order
        self.known: list[np.ndarray] = []  # [n - 1]: the n-grams of the text, sorted
        counts, ends = [], []  # [n - 1]: how often each, and where it stands first (its last token)
        ranks = []  # [n - 1]: the number of the n-gram that ends at each position from n - 1 on
        number, last = np.zeros(len(tokens), np.int64), tokens.astype(np.int64)
        for n in range(1, order + 1):
            # of the n-grams that end at each position from n - 1 on
            keys = (number[:-1] if n > 1 else number) * vocabulary + last[n - 1 :]
            known, first, number, count = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
            self.known.append(known)
            counts.append(count)
            ends.append(first + n - 1)
            ranks.append(number)
        for n in range(1, order):  # the (n + 1)-grams end with n-grams: each counts once, whatever its own count
            suffix = ranks[n - 1][ends[n] - (n - 1)]
            counts[n - 1] = np.bincount(suffix, minlength=len(self.known[n - 1]))
        self.counts = counts
        self.totals, self.followers = [], []  # [n - 1]: of the (n - 1)-gram h, by its number: c(h), N(h)
        for n in range(1, order + 1):
            of = self.known[n - 1] // vocabulary
            size = len(self.known[n - 2]) if n > 1 else 1
            self.totals.append(np.bincount(of, weights=counts[n - 1], minlength=size))
            self.followers.append(np.bincount(of, weights=counts[n - 1] > 0, minlength=size))
        of_count = [[int((count == k).sum()) for k in (1, 2)] for count in counts]
        self.discounts = [one / (one + 2 * two) if one else 0.5 for one, two in of_count]

    def _numbers(self, tokens: np.ndarray) -> list[np.ndarray]:
        """By n - 1: the number [N] of the n-gram that ends at each position, -1 where the text has none or it would begin too early."""
        numbers, before = [], np.zeros(len(tokens), np.int64)
        for known in self.known:
            keys = np.where(before < 0, -1, before * self.vocabulary + tokens)
            place = np.searchsorted(known, keys).clip(max=len(known) - 1)
            numbers.append(np.where((keys >= 0) & (known[place] == keys), place, -1))
            before = np.concatenate([[-1], numbers[-1][:-1]])
        return numbers

    def log_probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """``ln P(w_t | w_{t-n+1} ... w_{t-1})`` [N], in nats, of each token of a text; the first tokens see what there is."""
        numbers = self._numbers(tokens)
        probability = np.full(len(tokens), 1 / self.vocabulary)
        for n in range(1, self.order + 1):
            before = np.zeros(len(tokens), np.int64) if n == 1 else np.concatenate([[-1], numbers[n - 2][:-1]])
            total = np.where(before < 0, 0, self.totals[n - 1][before])
            count = np.where(numbers[n - 1] < 0, 0, self.counts[n - 1][numbers[n - 1]])
            discount = self.discounts[n - 1]
            with np.errstate(divide="ignore", invalid="ignore"):
                seen = np.maximum(count - discount, 0) / total
                left = discount * self.followers[n - 1][before] / total
                probability = np.where(total > 0, seen + left * probability, probability)
        return np.log(probability)
