# %% exercise-06-1
def token_bytes(config, context, weight_bits=8, kv_bits=32):
    """Bytes from memory for one token."""
    c = config
    layer = 2 * c.dim * c.dim + 2 * c.kv_dim * c.dim + 3 * c.hidden_dim * c.dim
    weights = c.n_layers * layer + c.vocab_size * c.dim  # one embedding row: negligible
    scales = 4 * weights / 64
    values = 2 * c.n_layers * context * c.kv_dim
    kv_scales = 2 * c.n_layers * context * c.n_kv_heads * 4 if kv_bits == 8 else 0
    return weights * weight_bits / 8 + scales + values * kv_bits / 8 + kv_scales


# %% exercise-06-2
def needs_mib(config, weight_bits=8, kv_bits=32):
    """MiB of the weights and of one sequence's keys and values."""
    stored = token_bytes(config, config.seq_len, weight_bits, kv_bits)
    if not config.tied:
        stored += config.vocab_size * config.dim * (weight_bits / 8 + 4 / 64)
    return stored / 2**20


# %% exercise-06-3
prediction = board.memory.peak_bytes_per_s * board.memory.efficiency / token_bytes(config, CONTEXT)
# %% exercise-06-4
int4_gain = token_bytes(config, config.seq_len, 8) / token_bytes(config, config.seq_len, 4)


# %% exercise-06-5
def value(tokens_per_second, watts, price):
    """Give tokens/s per unit of money, and joules per token: a pair."""
    return tokens_per_second / price, watts / tokens_per_second
