# %% exercise-08-1
ports_bytes_per_cycle = kernel.channels * kernel.beat_bytes
memory_bytes_per_cycle = (
    board.memory.peak_bytes_per_s * board.memory.efficiency / (kernel.clock_mhz * 1e6)
)
limit = "memory" if memory_bytes_per_cycle < ports_bytes_per_cycle else "ports"


# %% exercise-08-2
before = min(ports_bytes_per_cycle, memory_bytes_per_cycle)
speed_share = min(ports_bytes_per_cycle / 2, memory_bytes_per_cycle) / before  # the ports limit
dsp_share = 0.92  # only the engines have fewer multipliers, a small part


# %% exercise-08-3
changes = {"kChannels": 4, "kMaxRows": 8, "kTopLogits": 16}


# %% exercise-08-4
same_text = True
same_logits = True
same_channel_bytes = False  # tiles are dealt out to four channels instead of two
