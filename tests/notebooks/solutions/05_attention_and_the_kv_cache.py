# %% exercise-05-1
def position_bytes(n_layers, n_kv_heads, head_size, int8):
    """Three sizes, and whether the cache is int8 -> bytes of one position."""
    one = head_size + 4 if int8 else 4 * head_size
    return n_layers * n_kv_heads * 2 * one


# %% exercise-05-2
def attention_weights(query, keys):
    """(head_size,) and (positions, head_size) -> (positions,) weights that sum to 1."""
    scores = keys @ query / np.sqrt(len(query))
    terms = np.exp(scores - scores.max())
    return terms / terms.sum()


# %% exercise-05-3
def merge(m_a, s_a, m_b, s_b):
    """Maximum and sum of two blocks -> maximum and sum of both together."""
    m = max(m_a, m_b)
    return m, s_a * np.exp(m_a - m) + s_b * np.exp(m_b - m)
