# %% exercise-02-1
per_layer = (
    2 * config.dim * config.dim
    + 2 * config.kv_dim * config.dim
    + 3 * config.hidden_dim * config.dim
)
weights = config.n_layers * per_layer + config.vocab_size * config.dim
weight_bytes = weights * 68 / 64

# %% exercise-02-2
attention_growth = 256 / 32


# %% exercise-02-3
def speedup_without(share):
    """0 <= share < 1 -> how many times faster."""
    return 1 / (1 - share)
