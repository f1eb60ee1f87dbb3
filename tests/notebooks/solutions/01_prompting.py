# %% exercise-01-1
same_at_0 = True
same_at_1 = False


# %% exercise-01-2
def probabilities(logits, temperature):
    """(vocab_size,) float32 logits, temperature > 0 -> (vocab_size,), sums to 1."""
    scaled = logits / temperature
    terms = np.exp(scaled - scaled.max())
    return terms / terms.sum()


# %% exercise-01-3
def tokens_kept(p, top_p):
    """(vocab_size,) probabilities, in any order, and 0 < top_p <= 1 -> int, at least 1."""
    mass = np.cumsum(np.sort(p)[::-1])
    return min(int(np.sum(mass < top_p - 1e-12)) + 1, len(p))
