"""What the run was, in a line of tiles."""

from evaluation.report.page import brief, code
from evaluation.report.run_record import RunRecord
from shards.report.markup import facts


def overview(record: RunRecord) -> list[str]:
    config, step = record.config, record.step
    total = f" of {config.total_steps:,}" if config else ""
    seen = [line["images_seen"] for line in record.kept if line.get("images_seen") is not None]
    tiles = [
        ("steps", "none yet" if step is None else f"{step:,}{total}"),
        ("real images seen", f"{seen[-1]:,.0f}" if seen else "not recorded"),
        ("of training, by the log's rates", duration(record.seconds)),
        ("rollbacks", f"{len(record.rollbacks)}"),
        ("evaluations", f"{len(record.evaluations)}"),
    ]
    if config:
        tiles.insert(3, ("pixels", f"{config.resolution} × {config.resolution}"))
    if record.best:
        metric, at, value = record.best
        tiles.append((f"best {metric}, step {at:,}", brief(value)))
    return [facts(tiles), f'<p class="note">{" ".join(_where(record))}</p>']


def duration(seconds: float | None) -> str:
    """97 -> '1 min 37 s'."""
    if seconds is None:
        return "not recorded"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _where(record: RunRecord) -> list[str]:
    told = [f"Data: {code(record.config.data)}."] if record.config and record.config.data else []
    if fingerprint := record.state.get("data_fingerprint"):
        told.append(f"Fingerprint of the data: {code(str(fingerprint)[:16])}.")
    times = [event["time"] for event in record.events if event["time"]]
    if times:
        told.append(f"Events from {code(times[0][:19])} to {code(times[-1][:19])}.")
    devices = sorted({str(one.protocol["device"])[:60] for one in record.evaluations if one.protocol.get("device")})
    evaluated = f"; evaluated on {', '.join(map(code, devices))}" if devices else ""
    return [*told, f"The devices of the training are not recorded{evaluated}."]
