"""The figures of the studies, drawn from their JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def short(labels: Sequence[str]) -> dict[str, str]:
    """Shorten the paths at the end of `labels` to as few folders as keep them distinct."""
    parts = [label.rpartition(", ") for label in labels]
    most = max((label.count("/") for label in labels), default=0) + 1
    for count in range(1, most + 1):
        names = {"".join(part): part[0] + part[1] + "/".join(part[2].split("/")[-count:]) for part in parts}
        if len(set(names.values())) == len(names):
            break
    return names


def draw_responses(networks: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Standard deviations by layer, in network order above, sorted below (1512.03385 Figure 7)."""
    figure, axes = new_figure(2, 1, (9, 7))
    names = short(list(networks))
    for label, layers in networks.items():
        values = list(layers.values())
        axes[0].plot(range(1, len(values) + 1), values, marker=".", label=names[label])
        axes[1].plot(range(1, len(values) + 1), sorted(values, reverse=True), marker=".", label=names[label])
    for axis, what in zip(axes, ("layer", "layer, by magnitude"), strict=True):
        axis.set(xlabel=what, ylabel="standard deviation of the response")
        axis.legend()
    whole_numbers(*axes)
    figure.savefig(path, dpi=120)


def draw_gradients(networks: Mapping[str, Sequence[Mapping]], path: Path) -> None:
    """Norms of the gradient at the blocks' inputs, and the share that came through shortcuts alone."""
    figure, (left, right) = new_figure(1, 2, (12, 4.5))
    names = short(list(networks))
    for k, (label, rows) in enumerate(networks.items()):
        places = range(1, len(rows) + 1)
        left.plot(places, [row["norm"] for row in rows], marker=".", color=f"C{k}", label=names[label])
        shares = [row["share"] for row in rows]
        if None not in shares:
            right.plot(places, shares, marker=".", color=f"C{k}", label=names[label])
    left.set(xlabel="block", ylabel="norm of the loss's gradient at the block's input", yscale="log")
    right.set(xlabel="block", ylabel="share through shortcuts alone")
    whole_numbers(left, right)
    for axis in (left, right):
        if axis.lines:
            axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def draw_lesions(networks: Mapping[str, Mapping], metric: str, path: Path) -> None:
    """The metric without each block, without several, and with several reordered (1605.06431 Figures 3 and 5); by
    path length, the gradient along one path and the contribution of all paths (Figure 6)."""
    figure, ((single, many, order), (lengths, contributions, legend)) = new_figure(2, 3, (16, 9))
    legend.set_axis_off()
    names = short(list(networks))
    for k, (label, found) in enumerate(networks.items()):
        rows, color = found["experiments"], f"C{k}"
        baseline = next(row[metric] for row in rows if row["kind"] == "baseline")
        singles = [row for row in rows if row["kind"] == "single"]
        places = [found["blocks"].index(row["blocks"][0]) + 1 for row in singles]
        single.plot(places, [row[metric] for row in singles], ".", color=color, label=names[label])
        single.axhline(baseline, color=color, linewidth=0.8)
        for axis, kind, key in ((many, "random", "count"), (order, "reordered", "correlation")):
            some = [row | {"count": len(row.get("blocks", ()))} for row in rows if row["kind"] == kind]
            axis.plot([row[key] for row in some], [row[metric] for row in some], ".", color=color, label=names[label])
        paths = found.get("paths", [])
        for axis, key in ((lengths, "gradient"), (contributions, "contribution")):
            axis.plot([row["length"] for row in paths], [row[key] for row in paths], ".-", color=color)
    single.set(xlabel="removed block", ylabel=metric)
    many.set(xlabel="number of blocks removed", ylabel=metric)
    order.set(xlabel="Kendall's correlation with the trained order", ylabel=metric)
    lengths.set(xlabel="path length in residuals", ylabel="norm of the gradient along a path", yscale="log")
    contributions.set(xlabel="path length in residuals", ylabel="gradient of all paths of a length, relative")
    order.invert_xaxis()
    whole_numbers(single, many, lengths, contributions)
    legend.legend(*single.get_legend_handles_labels(), loc="upper left")
    figure.savefig(path, dpi=120)


def draw_costs(rows: Sequence[Mapping], path: Path) -> None:
    """Error against parameters, FLOPs and seconds, one point per network."""
    figure, axes = new_figure(1, 3, (14, 4.5))
    names = short([row["name"] for row in rows])
    for axis, key in zip(axes, ("parameters", "flops", "seconds"), strict=True):
        for row in rows:
            axis.plot([row[key]], [row["error"]], "o", label=names[row["name"]])
        axis.set(xlabel=key, ylabel="error (%)")
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def new_figure(rows: int, columns: int, size: tuple[float, float]):
    from matplotlib.figure import Figure  # here, because it takes long to import

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    return figure, axes


def whole_numbers(*axes) -> None:
    """Ticks of the x axis at whole numbers only."""
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
