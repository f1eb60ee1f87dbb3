# %% exercise-07-1
def speed_up(weight_bytes, kv_bytes, rows):
    """kv_bytes: keys and values of one sequence."""
    return rows * (weight_bytes + kv_bytes) / (weight_bytes + rows * kv_bytes)


# %% exercise-07-2
guess = {2: 1.5, 4: 2.2, 8: 2.8}


# %% exercise-07-3
def largest_batch(rates, most_ms):
    """Largest number of sequences that each wait at most most_ms for a token."""
    return max((n for n, rate in rates.items() if 1000 * n / rate <= most_ms), default=0)


# %% exercise-07-4
joules = 9.0 / 57.11, 126.9 / 107.00
sequences = joules[1] / joules[0]
