"""Where our detector's training step spends its time: the operators by self time."""

from torch.profiler import ProfilerActivity
from torch.profiler import profile as record

from .detection import build_detector, shared_state, training_step
from .settings import Settings
from .timing import Row

SHOWN = 12  # operators, the longest ones; the rest are one row


def profiles(settings: Settings) -> list[Row]:
    """A row for the whole step, which the profiler slows down a little, and one per operator, its mean over rounds."""
    on_gpu = settings.device == "cuda"
    step = training_step("ours", build_detector("ours", settings, shared_state(settings)), settings)
    step()
    with record(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        for _ in range(settings.rounds):
            step()
    times = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 / settings.rounds
        for event in profiler.key_averages()
    }
    longest = sorted(times, key=times.get, reverse=True)[:SHOWN]
    whole, shown = sum(times.values()), {name: times[name] for name in longest}
    seconds = {"ours": whole} | shown | {"everything else": whole - sum(shown.values())}
    measured = f"profile of the training step ({settings.name}_fpn, short side {settings.short_side})"
    return [
        Row(measured, name, [spent], images=2, remark=f"{100 * spent / whole:.1f} %") for name, spent in seconds.items()
    ]
