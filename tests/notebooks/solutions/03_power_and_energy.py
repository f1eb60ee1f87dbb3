# %% exercise-03-1
def joules_per_token(watts, tokens_per_second):
    """Both floats above 0 -> joules."""
    return watts / tokens_per_second


def mwh(joules):
    """Joules -> milliwatt-hours."""
    return joules / 3.6


# %% exercise-03-2
def energy(times, watts):
    """(n,) seconds and (n,) watts, some of them nan -> joules."""
    pieces = (times[1:] - times[:-1]) * (watts[1:] + watts[:-1]) / 2
    return sum(piece for piece in pieces if piece == piece)


# %% exercise-03-3
fpga_mwh_at_8 = mwh(joules_per_token(9, 8))
cpu_watts_are = "constant"
