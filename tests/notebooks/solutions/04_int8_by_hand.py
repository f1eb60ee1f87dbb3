# %% exercise-04-1
error_percent = 0.6  # 0.29 steps; a step is 1/127 of the largest value, about 2.5 times the rms


# %% exercise-04-2
def quantize_group(x):
    """(64,) float32 -> (64,) int8 and one float32 scale."""
    largest = np.abs(x).max()
    if largest < np.float32(2.0**-100):
        return np.zeros(len(x), np.int8), np.float32(0)
    q = np.rint(x * (np.float32(127) / largest))
    return q.astype(np.int8), largest / np.float32(127)


# %% exercise-04-3
def dot_groups(w, w_scale, x, x_scale):
    """(64,) int8, float32, (64,) int8, float32 -> float32."""
    total = np.sum(w.astype(np.int32) * x.astype(np.int32))
    return (np.float32(total) * w_scale) * x_scale


# %% exercise-04-4
def matvec(q, scale, x, x_scale):
    """Quantised matrix times quantised vector -> (rows,) float32."""
    total = np.zeros(len(q), np.float32)
    for g in range(len(x_scale)):
        part = slice(64 * g, 64 * (g + 1))
        dots = q[:, part].astype(np.int32) @ x[part].astype(np.int32)
        total = total + (dots.astype(np.float32) * scale[:, g]) * x_scale[g]
    return total


# %% exercise-04-5
changed_percent_64 = 0  # one addition, and a + b equals b + a
changed_percent_32 = 40  # three additions, and each rounds
